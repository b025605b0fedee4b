"One training in one process, in two, and now in one, now in two: the same numbers, each image once, one writer, no hangs."
import json, os, signal, subprocess, sys
from pathlib import Path
import pytest, torch
from mnistgen.lab.data import Batches, load_images
from mnistgen.lab.store import load_checkpoint
from mnistgen.zoo.models import MODELS
from mnistgen.unet import UNet

pytest.importorskip('accelerate')

SMALL = dict(channels=(32, 32, 32), pad_to=28)

# `mnistgen`, but it draws no stage images, and writes into log-RANK which images it saw, what it wrote and how it ended.
# SMALL=1: a small network. OPTIMIZER: instead of AdamW. STOP='rank step signal self|launcher': the rank sends the signal at that step.
DRIVER = f'''
import json, os, signal, sys, time
from dataclasses import replace
from pathlib import Path
import torch
import mnistgen.zoo.cli as cli, mnistgen.zoo.models as zoo
from mnistgen.zoo.generator import Generator
from mnistgen.ddpm import DDPM
from mnistgen.lab.data import load_images, to_uint8
from mnistgen.lab.training import Trainer

rank, world, here, run = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1)), Path.cwd(), os.path.abspath('run')
fd = os.open(f'log-{{rank}}', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def tell(*what): os.write(fd, (json.dumps(what) + chr(10)).encode())

def watch(event, args):
    if event == 'open': paths = args[:1] if (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else []
    elif event in ('os.rename', 'os.remove', 'os.mkdir', 'os.chmod', 'os.truncate'): paths = args[:2]
    else: return
    for p in paths:
        if isinstance(p, (str, os.PathLike)) and os.path.abspath(p).startswith(run): tell('write', os.path.relpath(os.path.abspath(p), run))
sys.addaudithook(watch)

index = {{split: {{p.numpy().tobytes(): i for i, p in enumerate(load_images(split=split).pixels[:600])}} for split in ('train', 'test')}}
losses, train_step = DDPM.losses, Trainer.train_step
def losses_seen(self, net, batch, rng=None):
    split = 'train' if net.training else 'test'
    tell(split, [index[split][p.numpy().tobytes()] for p in to_uint8((batch[0] + 1)/2)])
    return losses(self, net, batch, rng)
def stopping_step(self, batch):
    if os.environ.get('STOP'):
        who, step, sig, whom = os.environ['STOP'].split()
        if (rank, self.step) == (int(who), int(step)): os.kill(os.getpid() if whom == 'self' else os.getppid(), getattr(signal, sig))
    return train_step(self, batch)
DDPM.losses, Trainer.train_step = losses_seen, stopping_step
Generator.preview = lambda self, images=None: torch.zeros(1, 1, 28, 28)
model = zoo.MODELS['ddpm']
if os.environ.get('SMALL'): model = replace(model, network={SMALL!r})
zoo.MODELS['ddpm'] = replace(model, recipes=dict(model.recipes, quick=replace(model.recipes['quick'], optimizer=os.environ.get('OPTIMIZER', 'adamw'))))

code = cli.main(sys.argv[1:])
tell('exit', code)
until = time.time() + 20                                             # a launcher ends the others when one fails: let them speak first
while not all((here/f'log-{{r}}').exists() and '"exit"' in (here/f'log-{{r}}').read_text() for r in range(world)) and time.time() < until: time.sleep(.05)
sys.stdout.flush(); sys.stderr.flush()
os._exit(code)                                                       # as the command does
'''

def logs(folder, ranks=2): return [[json.loads(l) for l in (folder/f'log-{r}').read_text().splitlines()] for r in range(ranks)]
def of(log, kind): return [x for k, x in log if k == kind]

TORCHRUN = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node']

@pytest.fixture(scope='module')
def launch(env):
    "Run the driver in a folder, in so many processes. One thread each, so that two are not slower than one and sums have one order."
    def _launch(folder, processes, line, ok=True, **extra):
        folder.mkdir(exist_ok=True)
        for old in folder.glob('log-*'): old.unlink()
        (folder/'drive.py').write_text(DRIVER)
        start = [sys.executable] if processes == 1 else [*TORCHRUN, str(processes)]
        r = subprocess.run([*start, 'drive.py', *line.split(), '--out', 'run'], cwd=folder, env=env | {'OMP_NUM_THREADS': '1'} | extra, capture_output=True, text=True, timeout=300)
        assert not ok or r.returncode == 0, r.stderr
        return r
    return _launch

def losses(folder): return [[h['step'], h['train_loss'], h['eval_loss'], h['lr']] for h in json.loads((folder/'run/ddpm.json').read_text())['history']]

# One and two processes add the same float32 numbers in another order: 6e-8 a time, which leaves 1e-6 of the gradients and less of the losses.
# Adam divides each gradient by its size, so that the smallest, which are mostly rounding, move as far as any: hence the larger bound for weights.
BOUNDS = dict(losses=1e-6, net=5e-3, average=5e-3, exp_avg=2e-5, exp_avg_sq=2e-5, momentum=2e-5)

def far(a, b, network):
    """How far two runs are apart: the largest relative difference of a loss of an epoch; the distance of each kind of tensor, taken as one vector:
    for weights and averages, as a share of the way they came from their initial values; for the moments, which are sums of gradients, of their length."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = {k: p.detach() for k, p in UNet(**network).named_parameters()}
    (x, _), (y, _) = [load_checkpoint(f/'run/state.safetensors') for f in (a, b)]
    assert x.keys() == y.keys()
    assert all(x[k].equal(y[k]) for k in x if k.startswith('optimizer.step.'))
    u, v = losses(a), losses(b)
    assert [(h[0], h[3]) for h in u] == [(h[0], h[3]) for h in v]    # steps and learning rates
    out = dict(losses=max(abs(x/y - 1) for h, g in zip(u, v) for x, y in zip(h[1:3], g[1:3])))
    for kind in ('net', 'average', *(m for m in ('exp_avg', 'exp_avg_sq', 'momentum') if any(k.startswith(f'optimizer.{m}.') for k in x))):
        moved = kind in ('net', 'average')
        key = f'{kind}.' if moved else f'optimizer.{kind}.'
        u, v = [torch.cat([(t[key + k] - p*moved).double().flatten() for k, p in start.items() if key + k in t]) for t in (x, y)]     # some weights have Adam's moments, some Muon's
        out[kind] = ((u - v).norm()/u.norm()).item()
    return out

def too_far(*args, bounds=BOUNDS):
    d = far(*args)
    if os.environ.get('SHOW'): print(d)
    return {k: v for k, v in d.items() if not v <= bounds[k]}

# ---- the report's network, whole batches of 33 in parts of 16 and 17

LINE = 'train ddpm --epochs 2 --batch-size 33 --limit 132 --device cpu --plain'

@pytest.fixture(scope='module')
def one_and_two(launch, tmp_path_factory):
    one, two = tmp_path_factory.mktemp('one'), tmp_path_factory.mktemp('two')
    launch(one, 1, LINE)
    return one, two, launch(two, 2, LINE)

def test_two_processes_give_the_weights_and_losses_of_one(one_and_two):
    one, two, _ = one_and_two
    record = json.loads((two/'run/ddpm.json').read_text())
    assert record['processes'] == 2 and record['precision'] == 'float32' and len(record['history']) == 2
    assert losses(two)[-1][0] == 8
    assert too_far(one, two, MODELS['ddpm'].network) == {}

def test_two_processes_give_the_gradients_of_one_to_muon(launch, tmp_path):
    "One step: Muon's momentum is then a share of the gradient. Its steps give every direction of a kernel the same length, those too in which the gradient is nothing but rounding."
    line = 'train ddpm --epochs 1 --batch-size 33 --limit 33 --device cpu --plain'
    for n in (1, 2): launch(tmp_path/str(n), n, line, SMALL='1', OPTIMIZER='muon')
    assert too_far(tmp_path/'1', tmp_path/'2', SMALL, bounds=BOUNDS | dict(net=5e-2, average=5e-2)) == {}
    assert 'optimizer.momentum.mid.res.0.conv1.weight' in load_checkpoint(tmp_path/'1/run/state.safetensors')[0]

def test_each_image_is_seen_once_an_epoch(one_and_two):
    one, two, _ = one_and_two
    data = Batches(load_images().pixels[:132], batch_size=33)
    want = [data.order(e)[i*33:(i + 1)*33].tolist() for e in range(2) for i in range(4)]
    a, b = [of(log, 'train') for log in logs(two)]
    assert [x + y for x, y in zip(a, b, strict=True)] == want == of(logs(one, 1)[0], 'train')
    assert {(len(x), len(y)) for x, y in zip(a, b)} == {(16, 17)}
    assert all(sorted(sum((x + y for x, y in zip(a[e:e + 4], b[e:e + 4])), [])) == list(range(132)) for e in (0, 4))

def test_one_process_writes_and_speaks(one_and_two):
    one, two, r = one_and_two
    first, second = logs(two)
    assert {'state.safetensors', 'ddpm.safetensors', 'ddpm.json', 'ddpm-epoch-001.png'} <= set(of(first, 'write')) and of(second, 'write') == []
    assert {p.name for p in (two/'run').iterdir()} == {p.name for p in (one/'run').iterdir()}
    assert r.stdout.count('ddpm  epoch ') == 2 and r.stdout.count('ddpm.safetensors: 2 epochs') == 1

def test_what_the_first_process_finds_wrong_ends_both_with_one_line(one_and_two, launch):
    two = one_and_two[1]
    before = (two/'run/state.safetensors').read_bytes()
    r = launch(two, 2, LINE, ok=False)
    assert r.returncode != 0 and [of(log, 'exit') for log in logs(two)] == [[2], [2]]
    assert 'Traceback' not in r.stderr.split('torch/distributed')[0]
    assert [l for l in r.stderr.splitlines() if l.startswith('mnistgen:')] == ['mnistgen: run: already holds a run: resume it (--resume), or choose another folder (--out)']
    assert (two/'run/state.safetensors').read_bytes() == before

# ---- stopped and resumed, on another number of processes each time. Fifteen steps an epoch, two batches to evaluate

SHORT = 'train ddpm --epochs 2 --batch-size 33 --limit 500 --device cpu --plain'

def test_a_run_goes_on_with_another_number_of_processes(launch, tmp_path):
    whole, run = tmp_path/'whole', tmp_path/'parts'
    launch(whole, 1, SHORT, SMALL='1')
    def go(processes, stop, resume=True): return launch(run, processes, SHORT + ' --resume'*resume, ok=not stop, SMALL='1', STOP=stop)
    def step(): return load_checkpoint(run/'run/state.safetensors')[1]['step']

    r = go(2, '1 2 SIGINT self', resume=False)                       # the second process is interrupted in step 3: both stop behind it
    assert r.returncode != 0 and [of(log, 'exit') for log in logs(run)] == [[130], [130]] and r.stderr.count('saved in run: go on with --resume') == 1
    assert step() == 3
    r = go(1, '0 6 SIGINT self')
    assert r.returncode == 130 and step() == 7
    r = go(2, '1 20 SIGKILL self')                                   # one is killed: the other ends, and the end of the epoch is kept
    assert r.returncode != 0 and step() == 15
    a, b = logs(run)
    assert [sum(map(len, of(log, 'test'))) for log in (a, b)] == [250, 250] and sorted(sum(of(a, 'test') + of(b, 'test'), [])) == list(range(500))
    r = go(2, '0 17 SIGINT launcher')                                # Ctrl-C, as torchrun passes it on
    assert r.returncode != 0 and [of(log, 'exit') for log in logs(run)] == [[130], [130]] and 18 <= step() < 30
    r = go(1, '')
    assert r.stdout.count('ddpm  epoch ') == 1

    assert too_far(whole, run, SMALL) == {}
    assert not list((run/'run').glob('.*'))

# ---- the command as it is, with the engine, through accelerate's launcher

def test_accelerate_launches_one_and_two_and_the_engine_agrees(env, tmp_path):
    accelerate = [sys.executable, '-m', 'accelerate.commands.launch', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no']
    line = 'train ddpm --epochs 1 --batch-size 33 --limit 132 --device cpu --out run'.split()
    for name, flags in (('one', ['--cpu', '--num_processes', '1']), ('two', ['--multi_gpu', '--num_processes', '2', '--main_process_port', '0'])):   # with --cpu it would need MPI
        (tmp_path/name).mkdir()
        r = subprocess.run([*accelerate, *flags, '-m', 'mnistgen.zoo.cli', *line], cwd=tmp_path/name, env=env | {'OMP_NUM_THREADS': '1'}, capture_output=True, text=True, timeout=300)
        assert r.returncode == 0, r.stderr
        assert r.stdout.count('ddpm.safetensors: 1 epoch,') == 1
    one, two = [json.loads((tmp_path/name/'run/ddpm.json').read_text()) for name in ('one', 'two')]
    assert (one['processes'], two['processes']) == (1, 2) and (one['engine'], one['precision']) == (two['engine'], two['precision'])
    torch.testing.assert_close(torch.tensor(losses(tmp_path/'two')), torch.tensor(losses(tmp_path/'one')), rtol=1e-3 if one['precision'] == 'bfloat16' else 1e-5, atol=0)

def test_two_processes_train_on_the_same_latents(env, tmp_path):
    "Each encodes the images by itself, once: what they train on, and so the losses, are those of one."
    start, cli = dict(one=[sys.executable], two=[*TORCHRUN, '2']), ['-m', 'mnistgen.zoo.cli']
    def run(name, line):
        r = subprocess.run([*start[name], *cli, *line.split()], cwd=tmp_path, env=env | {'OMP_NUM_THREADS': '1'}, capture_output=True, text=True, timeout=300)
        assert r.returncode == 0, r.stderr
    run('one', 'train vae-light --epochs 1 --batch-size 64 --limit 64 --device cpu --plain --out vae')
    for name in start: run(name, f'train ldm --epochs 1 --batch-size 33 --limit 99 --device cpu --plain --autoencoder vae/vae-light.safetensors --out {name}')
    one, two = [json.loads((tmp_path/name/'ldm.json').read_text()) for name in start]
    assert (one['processes'], two['processes']) == (1, 2) and one['autoencoder'] == two['autoencoder'] == dict(name='vae-light', **{k: load_checkpoint(tmp_path/'vae/vae-light.safetensors')[1][k] for k in ('checksum', 'scale')})
    for h, g in zip(one['history'], two['history'], strict=True): assert all(abs(h[k]/g[k] - 1) < 1e-4 for k in ('train_loss', 'eval_loss')), (h, g)
