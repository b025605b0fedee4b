"A training that cannot be lost: killed, interrupted, out of room, gone astray, given damaged files, started twice."
import io, json, os, pickle, random, re, shutil, signal, struct, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
import pytest, torch
from safetensors.torch import save_file
from mnistgen.lab import store
from mnistgen.zoo.cli import main
from mnistgen.lab.store import FORMAT, load_checkpoint, save_checkpoint

exe = Path(sys.executable).parent/'mnistgen'
LINE = 'train ddpm --epochs 2 --batch-size 32 --limit 128 --device cpu'         # four steps an epoch, and a stage after each

# The command, with things that happen at a chosen moment. It says the number and the content of each step that it does.
DRIVER = '''
import json, os, resource, shutil, signal, sys
from pathlib import Path
from types import SimpleNamespace
import safetensors.torch, torch
from mnistgen.ddpm import DDPM
from mnistgen.zoo import cli
from mnistgen.zoo.generator import Generator
from mnistgen.lab.training import Trainer

def at(f, owner, name, nth=1, of='', after=False):
    "Call f with the arguments of the nth call of a function, before it or after; with `of`, only files with that in their names count."
    old, calls = getattr(owner, name), []
    def new(*a, **kw):
        if of and not any(of in Path(x).name for x in a if isinstance(x, (str, Path))): return old(*a, **kw)
        calls.append(0)
        now = len(calls) == nth
        if now and not after: f(*a)
        result = old(*a, **kw)
        if now and after: f(*a)
        return result
    setattr(owner, name, new)

def half(f, of, nth=1):
    "Call f when only half of the nth such file is written."
    def cut(tensors, path, *_):
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[:len(content)//2]); f()
        Path(path).write_bytes(content)
    at(cut, safetensors.torch, 'save_file', nth, of, after=True)

def send(*signals): return lambda *_: [os.kill(os.getpid(), s) for s in signals]
die, interrupt, terminate = send(signal.SIGKILL), send(signal.SIGINT), send(signal.SIGTERM)
def full(*_): resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))    # files cannot grow further, as on a full disk
def refuse(*_): raise PermissionError(13, 'Permission denied')
def wait(*_): print('waiting', flush=True); sys.stdin.readline()
def save_often(): Trainer.fit = lambda self, resume, fit=Trainer.fit: fit(self, resume, save_every=0.)

Trainer.train_step = lambda self, batch, step=Trainer.train_step: (print('step', self.step, float(batch[0].double().sum()), flush=True), step(self, batch))[1]
Generator.preview = lambda self, images=None: self.sample(16, steps=2)           # stages shall not take long
'''
# A process that has everything imported, and forks for each line of its input: to start anew would take longer than to train.
SERVER = '''
torch.optim.AdamW([torch.zeros(1)])                                                           # imports a lot, too
for line in sys.stdin:
    happening, argv = json.loads(line)
    if not os.fork():
        signal.alarm(300)
        for fd, name in ((1, 'out'), (2, 'err')): os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
        exec(happening)
        sys.exit(cli.main(argv))
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
'''

def steps(out): return [l for l in out.splitlines() if l.startswith('step ')]

@pytest.fixture(scope='module')
def train(env, tmp_path_factory):
    "Train in a process of its own, with things happening; what it said, and the steps it did."
    cwd = tmp_path_factory.mktemp('server')
    server = subprocess.Popen([sys.executable, '-c', DRIVER + SERVER], cwd=cwd, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    def call(out, happening='', more='', status=0):
        print(json.dumps([happening, [*LINE.split(), *more.split(), '--out', str(out)]]), file=server.stdin, flush=True)
        code, (said, err) = int(server.stdout.readline()), [(cwd/name).read_text() for name in ('out', 'err')]
        assert code == status and 'Traceback' not in err, f'exit {code}\n{said}\n{err}'
        if code != -signal.SIGKILL: assert list(out.glob('.*')) == []
        return SimpleNamespace(err=err, steps=steps(said))
    yield call
    server.communicate()

def finished(train, out, more=''):
    return out, train(out, "at(lambda self: shutil.copytree(self.out, self.out.with_name('halfway')), Trainer, 'save', after=True)", more).steps

@pytest.fixture(scope='module')
def undisturbed(train, tmp_path_factory):
    "A run to compare with: its folder, with a copy `halfway` beside it of what was there after the first epoch, and its steps."
    tmp = tmp_path_factory.mktemp('undisturbed')
    yield finished(train, tmp/'run')
    shutil.rmtree(tmp)

@pytest.fixture
def run(tmp_path):
    "A folder to train in. Not kept, as pytest would: it is large."
    yield tmp_path/'run'
    shutil.rmtree(tmp_path)

def step(run): return load_checkpoint(run/'state.safetensors')[1]['step'] if (run/'state.safetensors').exists() else 0

def assert_goes_on(run, train, undisturbed, least=0, more=''):
    "Resumed, a run does the steps that its state lacks, and no others, and leaves what the undisturbed one left: weights, optimiser, losses, files."
    begin = step(run)                                                             # 0: nothing has been saved
    assert begin >= least
    r = train(run, more=f'{more} --resume')
    said = '' if begin else f'{run}: holds no run to resume, begins anew\n'
    assert r.steps == undisturbed[1][begin:] and r.err == said
    (a, header), (b, wanted) = [load_checkpoint(d/'state.safetensors') for d in (run, undisturbed[0])]
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)
    losses = lambda h: [[e[k] for k in ('epoch', 'step', 'train_loss', 'eval_loss', 'lr')] for e in h['history']]
    assert losses(header) == losses(wanted) and header['step'] == 8
    weights, about = load_checkpoint(run/'ddpm.safetensors')
    assert about['epochs'] == 2 and all(v.equal(a[f'average.{k}'].half()) for k, v in weights.items())
    assert json.loads((run/'ddpm.json').read_text())['history'] == header['history']
    assert {p.name for p in run.iterdir()} == {p.name for p in undisturbed[0].iterdir()}

# ---- killed

MOMENTS = {                                                                       # what happens, and the least that is kept of it
    'before anything is saved': ("at(die, Trainer, 'train_step', 3)", 0),
    'writing the first state': ("half(die, 'state')", 0),
    'inside the first epoch, after a save': ("save_often(); at(die, Trainer, 'train_step', 4)", 3),
    'evaluating, after a save': ("save_often(); at(die, Trainer, 'evaluate')", 3),
    'between the first state and its weights': ("at(die, os, 'replace', 1, 'state', after=True)", 4),
    'writing the first weights': ("half(die, 'ddpm')", 0),
    'inside the second epoch': ("at(die, Trainer, 'train_step', 7)", 4),
    'inside the second epoch, after a save': ("save_often(); at(die, Trainer, 'train_step', 7)", 6),
    'drawing a stage': ("at(die, os, 'replace', 1, 'ddpm-epoch-002', after=True)", 4),
    'writing the last state': ("half(die, 'state', 2)", 4),
    'before the last state takes its place': ("at(die, os, 'replace', 2, 'state')", 4),
    'between the last state and its weights': ("at(die, os, 'replace', 2, 'state', after=True)", 4),
    'writing the last weights': ("half(die, 'ddpm', 2)", 4),
    'between the last weights and the record': ("at(die, os, 'replace', 2, 'ddpm.safetensors', after=True)", 4),
    'before the last record takes its place': ("at(die, os, 'replace', 2, 'ddpm.json')", 4),
}

@pytest.mark.parametrize('moment', MOMENTS)
def test_killed_and_resumed_ends_in_the_same_weights(moment, train, undisturbed, run):
    happening, least = MOMENTS[moment]
    killed = train(run, happening, status=-signal.SIGKILL)
    assert killed.steps == undisturbed[1][:len(killed.steps)]
    assert_goes_on(run, train, undisturbed, least)

def test_killed_plain_training_too(train, run, tmp_path):
    undisturbed = finished(train, tmp_path/'undisturbed', '--plain')
    train(run, MOMENTS['inside the second epoch, after a save'][0], '--plain', -signal.SIGKILL)
    assert_goes_on(run, train, undisturbed, 6, '--plain')

def test_a_finished_run_has_nothing_to_resume(train, undisturbed, run):
    shutil.copytree(undisturbed[0], run)
    assert_goes_on(run, train, undisturbed, 8)

def test_the_installed_command_killed_from_outside(env, train, undisturbed, run, tmp_path):
    "With nothing of it replaced."
    line = [exe, *LINE.split(), '--out', 'run']
    with subprocess.Popen(line, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert 'epoch 1/2' in p.stdout.readline()                                 # its state is saved or about to be
        while not (run/'state.safetensors').exists() and p.poll() is None: time.sleep(.05)
        p.kill()
    assert p.returncode == -signal.SIGKILL and step(run) == 4
    r = subprocess.run([*line, '--resume'], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert r.returncode == 0 and r.stdout.count('ddpm  epoch ') == 1, r.stderr     # only the epoch that was missing
    assert_goes_on(run, train, undisturbed, 8)

# ---- interrupted

def test_ctrl_c_saves_and_exits_cleanly(env, run, tmp_path):
    with subprocess.Popen([exe, *LINE.replace('--epochs 2', '--epochs 90').split(), '--out', 'run'], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert 'epoch 1/90' in p.stdout.readline()
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=300)
    assert p.returncode == 130 and 'Traceback' not in err and '--resume' in err
    assert 4 <= step(run) < 360

def test_interrupted_again_and_again(train, undisturbed, run):
    def interrupted(happening, more='--resume'): return train(run, happening, more, 130)
    r = interrupted("at(interrupt, Trainer, 'train_step', 2)", '')
    assert step(run) == 2 and 'stopped at step 2 of 8' in r.err and '--resume' in r.err
    r = interrupted("at(terminate, Trainer, 'train_step', 2)")                     # in the last step of an epoch, which is not ended
    assert step(run) == 4 and r.steps == undisturbed[1][2:4] and '--resume' in r.err and not (run/'ddpm.json').exists()
    r = interrupted("at(interrupt, Trainer, 'evaluate')")                          # while it is
    assert step(run) == 4 and r.steps == [] and '--resume' in r.err and len(json.loads((run/'ddpm.json').read_text())['history']) == 1
    r = interrupted("at(send(signal.SIGINT, signal.SIGINT), Trainer, 'train_step', 2)")
    assert step(run) == 4 and r.err.count('\n') == 2                               # at once, unsaved
    r = interrupted("half(send(signal.SIGINT, signal.SIGTERM), 'state')")
    assert step(run) == 4
    r = interrupted("at(terminate, Trainer, 'train_step', 4)")                     # in the last step of all
    assert step(run) == 8 and r.steps == undisturbed[1][4:]
    assert_goes_on(run, train, undisturbed, 8)

def test_interrupted_at_the_end_it_ends(train, undisturbed, run):
    train(run, "at(terminate, Trainer, '_draw', 2)")
    assert_goes_on(run, train, undisturbed, 8)

# ---- out of room

@pytest.mark.parametrize('happening, message', [('shutil.disk_usage = lambda _: SimpleNamespace(free=10**6)', 'make room'), ("at(refuse, Path, 'touch')", 'cannot be written')], ids=['full', 'unwritable'])
def test_no_room_is_found_before_the_first_step(happening, message, train, run):
    run.mkdir()
    r = train(run, happening, status=2)
    assert r.steps == [] and message in r.err and r.err.count('\n') == 1 and list(run.iterdir()) == []

@pytest.mark.parametrize('happening', ["at(full, Trainer, 'save', 2)", "at(full, os, 'replace', 2, 'state', after=True)", "at(full, Trainer, 'save', 1); save_often()"], ids=['state', 'weights', 'first state'])
def test_a_full_disk_leaves_what_was_saved(happening, train, undisturbed, run):
    r = train(run, happening, status=1)
    assert 'cannot be written' in r.err and r.err.count('\n') == 1
    assert_goes_on(run, train, undisturbed, 0 if 'often' in happening else 4)

# ---- gone astray

@pytest.mark.parametrize('happening, message', [
    ("at(lambda self, _: setattr(DDPM, 'loss', lambda self, *a, loss=DDPM.loss: loss(self, *a)*float('nan')), Trainer, 'train_step', 6)", 'the loss became nan at step 5 of 8 (epoch 2)'),
    ("at(lambda self, _: setattr(DDPM, 'loss', lambda self, *a, loss=DDPM.loss: loss(self, *a)/0), Trainer, 'train_step', 6)", 'the loss became inf at step 5 of 8 (epoch 2)'),
    ("at(lambda self, _: next(self.net.parameters()).data.view(-1)[:1].fill_(float('nan')), Trainer, 'train_step', 8, after=True)", 'not a number by step 8'),
    ("save_often(); at(lambda self, _: [s.get('momentum', s.get('exp_avg_sq')).fill_(float('inf')) for s in self.optimizer.state.values()], Trainer, 'train_step', 5, after=True)", 'infinite or not a number by step 5'),
], ids=['nan', 'inf', 'weight', 'optimiser'])
def test_what_is_not_a_number_is_not_written(happening, message, train, undisturbed, run):
    r = train(run, happening, status=1)
    assert message in r.err and r.err.count('\n') == 1
    assert step(run) == 4 and load_checkpoint(run/'ddpm.safetensors')[1]['epochs'] == 1
    assert_goes_on(run, train, undisturbed)

# ---- given damaged files

class Bomb:
    "Makes a file when it is unpickled."
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), 'w')

def flip(path, i):
    content = bytearray(path.read_bytes()); content[i] ^= 1
    path.write_bytes(content)

def again(path, tensors=None, format=FORMAT, **changes):
    "Write a checkpoint anew, with something changed."
    was, header = load_checkpoint(path)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(store, 'FORMAT', format)
        save_checkpoint(path, {k: (tensors or (lambda v: v))(v) for k, v in was.items()}, header | changes)

SPOILED = {                                                                        # what is done to a file, and what is said of it
    'cut': (lambda path: os.truncate(path, path.stat().st_size - 100), 'damaged'),
    'cut in the header': (lambda path: os.truncate(path, 100), 'damaged'),
    'empty': (lambda path: os.truncate(path, 0), 'damaged'),
    'altered': (lambda path: flip(path, -1000), 'checksum'),
    'altered in the header': (lambda path: flip(path, path.read_bytes().index(b'2711073')), 'damaged'),
    'another model': (lambda path: again(path, model='gan'), "'?gan'"),
    'another network': (lambda path: again(path, lambda v: v.new_zeros((*v.shape, 1))), '(of another network|not the weights of a model)'),
    'a later version': (lambda path: again(path, format=FORMAT + 1), f'of format {FORMAT + 1}.*upgrade mnistgen'),
    'from elsewhere': (lambda path: save_file(load_checkpoint(path)[0], path), 'not a checkpoint of mnistgen'),
    'pickle': (lambda path: path.write_bytes(pickle.dumps(Bomb(path.parent.parent/'made'))), 'damaged, or not a checkpoint'),
    'pickle of torch': (lambda path: torch.save(Bomb(path.parent.parent/'made'), path), 'damaged, or not a checkpoint'),
}

UNPICKLE = {'pickle': pickle.load, 'pickle of torch': lambda f: torch.load(f, weights_only=False)}

def assert_refused(line, message, folder, made, capsys):
    before = {p: p.read_bytes() for p in folder.iterdir()}
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.count('\n') == 1 and re.search(message, err), err
    assert {p: p.read_bytes() for p in folder.iterdir()} == before and not made.exists()

@pytest.mark.parametrize('how', SPOILED)
def test_spoiled_files_are_refused_in_one_line(how, undisturbed, capsys, run, tmp_path):
    "And never unpickled, neither as the state of a run nor as weights to sample with."
    spoil, message = SPOILED[how]
    shutil.copytree(undisturbed[0].with_name('halfway'), run)
    spoil(run/'state.safetensors'); spoil(run/'ddpm.safetensors')
    if how in UNPICKLE:                                                            # it would go off
        UNPICKLE[how](io.BytesIO((run/'state.safetensors').read_bytes())).close()
        (tmp_path/'made').unlink()
    assert_refused(f'{LINE} --plain --resume --out {run}', message, run, tmp_path/'made', capsys)
    assert_refused(f'sample {run/"ddpm.safetensors"} --n 1 --steps 1 --plain --out {tmp_path/"x.png"}', message, run, tmp_path/'made', capsys)
    assert not (tmp_path/'x.png').exists()

def test_state_and_weights_are_not_taken_for_each_other(undisturbed, capsys, run, tmp_path):
    shutil.copytree(undisturbed[0].with_name('halfway'), run)
    assert_refused(f'sample {run/"state.safetensors"} --n 1 --steps 1 --plain --out {tmp_path/"x.png"}', 'not the weights', run, tmp_path/'made', capsys)
    shutil.copy(run/'ddpm.safetensors', run/'state.safetensors')
    assert_refused(f'{LINE} --plain --resume --out {run}', 'holds weights', run, tmp_path/'made', capsys)

def test_a_changed_byte_is_found_wherever_it_is(undisturbed, tmp_path):
    path = tmp_path/'ddpm.safetensors'
    content = (undisturbed[0]/'ddpm.safetensors').read_bytes()
    size, end, pick = struct.unpack('<Q', content[:8])[0] + 8, len(content), random.Random(0).sample
    about, missed = content.index(b'__metadata__'), []
    for i in [*range(9), size, end - 1, *pick(range(about, content.index(b'"},"', about)), 80), *pick(range(size), 40), *pick(range(size, end), 20)]:
        path.write_bytes(content); flip(path, i)
        try: load_checkpoint(path); missed.append(content[max(0, i - 20):i + 20])
        except ValueError as e: assert '\n' not in str(e)
    assert missed == []

# ---- started twice

def test_a_second_run_in_the_folder_is_refused_and_the_first_unharmed(env, train, undisturbed, capsys, run, tmp_path):
    "Even while a file is half written; and the lock goes with a process that is killed."
    script = DRIVER + "half(wait, 'state'); at(wait, Trainer, 'train_step', 7); sys.exit(cli.main(sys.argv[1:]))"
    with subprocess.Popen([sys.executable, '-c', script, *LINE.split(), '--out', run], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        for _ in range(2):                                                         # without a state, and with one
            while (line := p.stdout.readline()) != 'waiting\n': assert line, p.stderr.read()
            for resume in ('', '--resume'): assert_refused(f'{LINE} --plain {resume} --out {run}', 'another run is writing there', run, tmp_path/'made', capsys)
            if not step(run): p.stdin.write('\n'); p.stdin.flush()
        p.kill()
    assert p.returncode == -signal.SIGKILL and json.loads((run/'ddpm.json').read_text())['history'][0]['step'] == 4
    assert_goes_on(run, train, undisturbed, 4)

# ---- beside other work

@pytest.mark.parametrize('waited, took, told', [(60., 100., True), (20., 100., False), (5., 8., False), (None, 100., False)])
def test_one_line_says_that_other_work_holds_the_processor(monkeypatch, capsys, waited, took, told):
    from mnistgen.lab import training
    threads = torch.get_num_threads()
    monkeypatch.setattr(training, 'seconds_waited', lambda: None if waited is None else 7 + waited*threads)
    run = SimpleNamespace(name='ddpm', warned=False)
    training.Trainer._warn_of_waiting(run, time.time() - took, 7.)
    err = capsys.readouterr().err
    assert run.warned == told and err.count('\n') == told and ('waited for it 60% of the time' in err) == told

def test_the_kernel_says_how_long_a_process_has_waited():
    "Two processes on one processor: each waits while the other one runs."
    if not Path('/proc/self/schedstat').exists() or not hasattr(os, 'sched_setaffinity'): pytest.skip('only Linux says it')
    pin = 'import os, time; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})'
    busy = subprocess.Popen([sys.executable, '-c', f'{pin}\nwhile True: pass'])
    look = f"""{pin}
from mnistgen.lab.device import seconds_waited
before, end = seconds_waited() or 0, time.time() + 2
while time.time() < end: pass
print(seconds_waited() - before)"""
    try: out = subprocess.run([sys.executable, '-c', look], capture_output=True, text=True, check=True).stdout
    finally: busy.kill()
    assert .1 < float(out) < 2.5
