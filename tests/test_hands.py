"What breaks in other people's hands: consoles that lack characters, torch's defaults changed by others, the wrong one of two files, shapes and ranges."
import copy, gzip, json, re, struct, subprocess, sys, warnings

import numpy as np
import pytest, torch
from conftest import notebooks, root, tree
import mnistgen
from mnistgen.ddpm import DDPM
from mnistgen.lab.data import load_images, read_idx
from mnistgen.lab.engine import freeze, use_fast_kernels
from mnistgen.lab.options import refusal
from mnistgen.lab.store import checksum, load_checkpoint, read_header, save_checkpoint
from mnistgen.unet import UNet
from mnistgen.zoo.cli import main
from mnistgen.zoo.evaluation import evaluate, get_judge
from mnistgen.zoo.train import train_model

# ---- printing

@pytest.mark.parametrize('encoding', ['ascii', 'cp1252'])
def test_a_console_without_greek_gets_all_the_same(encoding, env, tmp_path):
    "Help, tables and results are printed, with a ? for what the console lacks; the exit status is that of the work."
    np.save(tmp_path/'digits.npy', load_images(split='test').pixels[:50].numpy())
    def command(*line):
        p = subprocess.run([sys.executable, '-m', 'mnistgen.zoo.cli', *line], cwd=tmp_path, env=env | dict(PYTHONIOENCODING=encoding, PYTHONPATH=str(root)), capture_output=True)
        return p.returncode, p.stdout.decode(encoding), p.stderr.decode(encoding)
    words = {'ascii': {'list': 'ddpm-fast', 'sample --help': '--eta', 'sample ldm-fast --n 2 --steps 2 --out a.png': 'a.png: 2 images'}, 'cp1252': {'evaluate digits.npy': 'Fréchet'}}
    for line, word in words[encoding].items():
        code, out, err = command(*line.split())
        assert code == 0 and word in out and 'codec' not in err, (line, err)
    code, out, err = command('sample', 'ldm-fast', '--eta', 'π', '--out', 'b.png')
    assert code == 2 and err.startswith('mnistgen: eta ') and 'choose a number from 0 to 1' in err and err.count('\n') == 1

def test_a_console_without_a_locale(env, tmp_path):
    "Python writes to it in a way of its own, which has no η either."
    np.save(tmp_path/'digits.npy', load_images(split='test').pixels[:50].numpy())
    alone = env | dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0', PYTHONPATH=str(root))
    p = subprocess.run([sys.executable, '-m', 'mnistgen.zoo.cli', 'evaluate', 'digits.npy'], cwd=tmp_path, env=alone, capture_output=True)
    assert p.returncode == 0 and b'Fr?chet' in p.stdout, p.stderr

@pytest.mark.parametrize('script', [f for f in sorted(tree()) if f.parent.name in ('tools', 'benchmarks') and 'add_argument' in (root/f).read_text(encoding='utf-8')], ids=str)
def test_scripts_print_on_any_console(script, env):
    "Hours of measuring must not end at an η; and files are written and read in one encoding."
    source = (root/script).read_text(encoding='utf-8')
    p = subprocess.run([sys.executable, root/script, '--help'], env=env | dict(PYTHONIOENCODING='ascii', PYTHONPATH=str(root)), capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    prints = re.search(r'[^\x00-\x7f]', ''.join(re.findall(r'(?:print|say)\(.*', source))) or re.search(r'Way\(|\{SAMPLING\}', source)
    assert not prints or 'print_anything()' in source

@pytest.mark.parametrize('line', ['bundle.py .', 'measure.py ldm-fast --only nothing --state {weights}', 'judge.py --nothing'])
def test_tools_refuse_in_one_line(line, env, tmp_path):
    tool, *args = line.format(weights=root/'mnistgen/weights/cfg-fast.safetensors').split()
    p = subprocess.run([sys.executable, root/'tools'/tool, *args], cwd=tmp_path, env=env | dict(PYTHONPATH=str(root)), capture_output=True, text=True)
    assert p.returncode and 'Traceback' not in p.stderr and (p.stderr.count('\n') == 1 or p.stderr.startswith('usage')), p.stderr

# ---- torch's defaults

@pytest.fixture(params=['float64', 'another device', 'both'])
def foreign(request):
    "Defaults that another part of a program has set; meta stands for a GPU, where mixing devices fails as well."
    if request.param != 'another device': torch.set_default_dtype(torch.float64)
    if request.param != 'float64': torch.set_default_device('meta')
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)

WAYS = {'ddpm': dict(steps=2), 'ldm-fast': dict(steps=3), 'cfg-fast': dict(steps=3, labels=[3, 7], w=2., interval=(100, 900)), 'vae': {}}

@pytest.fixture(scope='module')
def usual():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return {name: mnistgen.load(name, 'cpu').sample(2, **kw) for name, kw in WAYS.items()} | {'solver': mnistgen.load('ldm-fast', 'cpu').sample(2, sampler='adaptive')}

def test_the_same_digits_under_foreign_defaults(usual, foreign):
    for name, kw in WAYS.items():
        g = mnistgen.load(name, 'cpu')
        images = g.sample(2, **kw)
        assert images.dtype == torch.float32 and images.device.type == 'cpu' and images.equal(usual[name]), name
        if name != 'vae': assert [im for _, im, _ in g.stream(2, **kw)][-1].equal(images), name
    assert mnistgen.load('ldm-fast', 'cpu').sample(2, sampler='adaptive').equal(usual['solver'])
    assert torch.empty(1).dtype == torch.get_default_dtype()

def test_training_and_judging_under_foreign_defaults(tmp_path, foreign):
    scores = evaluate(load_images(split='test').pixels[:60])
    record = train_model('cfg-fast', epochs=1, batch_size=64, limit=128, out=tmp_path/'a', device='cpu')
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    same = train_model('cfg-fast', epochs=1, batch_size=64, limit=128, out=tmp_path/'b', device='cpu')
    assert record['history'][0]['eval_loss'] == same['history'][0]['eval_loss']
    assert scores['train'] == evaluate(load_images(split='test').pixels[:60])['train']

@pytest.mark.parametrize('foreign', ['both'], indirect=True)
def test_the_whole_command_line_under_foreign_defaults(foreign, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draws = 'sample ldm-fast --n 4 --steps 2 --out {}.npy', 'sample run/cfg-fast.safetensors --labels 1,2 --n 4 --steps 2 --w 2 --out {}-asked.npy'
    trains = 'train cfg-fast --epochs 1 --batch-size 64 --limit 64 --device cpu --out run'
    for line in ('list', trains, *draws, 'evaluate {}.npy --out near.png', 'evaluate run/cfg-fast.safetensors --n 4 --steps 2 --json'): assert main(line.format('a').split()) == 0, line
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    for line in draws: assert main(line.format('b').split()) == 0
    for end in ('.npy', '-asked.npy'): assert (tmp_path/f'a{end}').read_bytes() == (tmp_path/f'b{end}').read_bytes()

def _parts():
    "What a program may call by itself, without a generator or the command line: {name: f() -> tensor}."
    from mnistgen.cfg import CrossUNet, Guided, LabelMLP
    from mnistgen.ddim import invert_ddim
    from mnistgen.ddpm import Noise
    from mnistgen.lab.data import Batches, check_labels, normalize
    from mnistgen.lab.options import SAMPLERS
    from mnistgen.lab.plotting import grid_array
    from mnistgen.lab.training import Recipe, Task, Trainer
    from mnistgen.ldm import MLP
    from mnistgen.rectified_flow import RectifiedFlow
    from mnistgen.vae import ELBO, VAE
    from mnistgen.zoo.evaluation import diversity, frechet_infinity, kid, load_judge, moments, prdc
    torch.manual_seed(0)
    net, asked, cross, vae = MLP(width=32, blocks=1), LabelMLP(width=32, blocks=1), CrossUNet(channels=(32, 64), in_channels=2, out_channels=2, pad_to=8), VAE((32,), middle=False)
    x, digits, seeded = torch.randn(4, 2, 4, 4), torch.tensor([0, 1, 2, -1]), lambda: torch.Generator().manual_seed(1)
    images, numbers = load_images(split='test'), lambda *v: torch.tensor(v, dtype=torch.float64, device='cpu')
    a, b = torch.randn(40, 8), 2*torch.randn(60, 8)
    last = lambda steps: list(steps)[-1][1].detach()
    def trained():
        import contextlib, io, tempfile
        data = Batches(x.repeat(8, 1, 1, 1), digits.repeat(8), 8, drop=.3)
        with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
            trainer = Trainer(Task('own', copy.deepcopy(asked), RectifiedFlow(coupling='transport'), data, data), Recipe(epochs=1, batch_size=8), out, 'cpu')
            last = trainer.fit()['history'][-1]
            return numbers(last['train_loss'], last['eval_loss'])
    out = {'a training': trained, 'a layout': lambda: freeze(cross)(x, torch.tensor([1, 2, 3, 999], device='cpu'), digits), 'an autoencoder': lambda: ELBO().loss(vae, (normalize(images.pixels[:4]), None), seeded()).detach(),
           'labels': lambda: check_labels([1, 2], 4), 'batches': lambda: next(Batches(images.pixels[:64], images.labels[:64], 32, drop=.5).epoch(1))[1], 'a grid': lambda: grid_array(images.pixels[:5]),
           'distances': lambda: numbers(frechet_infinity(a, moments(b)), *kid(a, b), *prdc(a, b).values(), diversity(get_judge().assess(images.pixels[:40]), images.labels[:40])), 'a judge': lambda: load_judge('labels')[0](normalize(images.pixels[:2]))}
    for process in (DDPM(clip=False), RectifiedFlow(times='logit-normal', weighting='min-snr'), DDPM(schedule='linear', predict='v', coupling='transport')):
        about = f'{type(process).__name__} {process.predict}: '
        out |= {f'{about}loss': lambda p=process: p.loss(asked, (x, digits), seeded()).detach(), f'{about}invert': lambda p=process: list(invert_ddim(net, p, x, 3))[-1][1],
                f'{about}of its own': lambda p=process: torch.tensor(type(p)(**p.config).levels(p.path(3)[0][0]), dtype=torch.float64, device='cpu'),
                f'{about}guided': lambda p=process: last(SAMPLERS['euler'](Guided(freeze(cross), p, w=3., rescale=.5, momentum=.3, interval=(10, 900), negative=2), p, x, 3, digits))}
        out |= {about + name: lambda p=process, f=f: last(f(net, p, x, None if f.adaptive else 3, None, Noise(0, 4))) for name, f in SAMPLERS.items()}
    return out

@pytest.fixture(scope='module')
def parts():
    with torch.random.fork_rng(): found = _parts()
    return {k: (f, f()) for k, f in found.items()}

def test_parts_used_alone_under_foreign_defaults(parts, foreign):
    before = torch.random.get_rng_state()
    for name, (f, want) in parts.items():
        got = f()
        assert (got.dtype, got.device) == (want.dtype, want.device) and got.equal(want), name
    assert torch.random.get_rng_state().equal(before)

def test_the_random_state_stays_where_it_was(tmp_path):
    before = torch.random.get_rng_state()
    g = mnistgen.load('ldm-fast', 'cpu')
    g.sample(2, steps=2)
    for _ in g.stream(2, steps=2): pass
    main(f'train cfg-fast --epochs 1 --batch-size 64 --limit 64 --device cpu --out {tmp_path}/run'.split())
    assert torch.random.get_rng_state().equal(before)

# ---- the wrong one of two files

@pytest.fixture(scope='module')
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wrong')/'run'
    train_model('cfg-fast', epochs=1, batch_size=64, limit=64, out=folder, device='cpu')
    return folder

@pytest.mark.parametrize('what', ['sample {0}/state.safetensors --out {1}/a.npy', 'sample {0} --out {1}/a.npy', 'evaluate {0} --n 4', 'train cfg-fast --start {0}/state.safetensors --out {1}/b',
                                  'train cfg-fast --start {0} --out {1}/b'])
def test_the_file_that_was_meant_is_named(what, run_folder, tmp_path, capsys):
    assert main(what.format(run_folder, tmp_path).split()) == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and str(run_folder/'cfg-fast.safetensors') in said and not list(tmp_path.iterdir())

@pytest.mark.parametrize('line, meant', [('sample digits.npy --out a.npy', 'mnistgen evaluate digits.npy judges them'), ('sample run/cfg-fast.json --out a.npy', 'give run/cfg-fast.safetensors'), ('sample a.pt --out a.npy', 'give a .safetensors file'),
    ('train cfg-fast --start digits.npy', 'mnistgen evaluate digits.npy'), ('train ldm --autoencoder digits.npy', 'mnistgen evaluate digits.npy'), ('evaluate a.pt', 'give a .safetensors file'),
    ('train run/cfg-fast.safetensors', 'train NAME --start run/cfg-fast.safetensors'), ('train run', 'train NAME --resume --out run'), ('train digits.npy', 'where the name of a model is expected')])
def test_a_file_of_another_kind_is_named_for_what_it_is(line, meant, run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'run').symlink_to(run_folder)
    (tmp_path/'a.pt').touch()
    np.save('digits.npy', np.zeros((4, 28, 28), np.uint8))
    assert main(line.split()) == 2
    assert meant in (said := capsys.readouterr().err) and said.count('\n') == 1 and len(list(tmp_path.iterdir())) == 3

def test_a_folder_without_weights(tmp_path, capsys):
    assert main(f'sample {tmp_path} --out a.npy'.split()) == 2
    assert 'a folder, there are no weights in it' in capsys.readouterr().err

# ---- shapes and ranges

def test_images_of_the_wrong_kind_are_refused():
    x, t = torch.rand(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64)
    for bad in (x[:, 0], x[..., 0], (255*x).byte()): assert 'images must be floats (B, C, H, W)' in refusal(DDPM().loss, lambda x, t, label: x, (bad, None))
    vae = mnistgen.load('vae', 'cpu')
    for bad in (2*x - 1, 255*x, x*float('nan')): assert 'floats must be in [0, 1]' in refusal(vae.encode, bad)
    assert vae.encode(x*1.00001).shape == (4, 2, 4, 4)
    assert get_judge().assess(x*1.00001).digits.shape == (4,)

@pytest.mark.parametrize('process', ['DDPM', 'RectifiedFlow'])
def test_what_samplers_are_given(process):
    "Images, labels and the answers of networks, in every sampler, guided or not."
    from mnistgen.cfg import Guided, LabelMLP
    from mnistgen.ddim import invert_ddim
    from mnistgen.ddpm import Noise
    from mnistgen.lab.options import SAMPLERS
    from mnistgen.rectified_flow import RectifiedFlow
    p, net, x = dict(DDPM=DDPM, RectifiedFlow=RectifiedFlow)[process](), LabelMLP(width=32, blocks=1), torch.randn(4, 2, 4, 4)
    def refused(f, net, x, label=None):
        said = refusal(lambda: list(f(net, p, x, *[] if getattr(f, 'adaptive', False) else [2], label=label, **{} if f is invert_ddim else dict(noise=Noise(0, 4)))))
        assert '\n' not in said
        return said
    for f in (*SAMPLERS.values(), invert_ddim):
        for bad in (x[:, :, 0], (9*x).byte(), (9*x).long(), x.numpy()): assert 'floats (B, C, H, W)' in refused(f, lambda x, t, label: x, bad)
        for answer in (x[:, :1], x[:, 0], (x,), None): assert 'the network answers' in refused(f, lambda x, t, label: answer, x)
        for n in (net, Guided(net, p, w=3.)):
            for label in ([0, 1, 2, 3], torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3, 10]), torch.ones(4)): assert 'label' in (said := refused(f, n, x, label)) or 'digit' in said
    assert 'leave them out' in refusal(lambda: list(SAMPLERS['adaptive'](net, p, x, 5)))

def test_labels_as_bytes():
    "As files of labels have them."
    from mnistgen.lab.data import check_labels
    for kind in (np.uint8, np.int16, np.int64): assert check_labels(np.array([0, 9], kind), 4).tolist() == [0, 9, 0, 9]
    assert 'from 0 to 9' in refusal(check_labels, np.array([255], np.uint8), 1)

def test_one_fact_in_one_place(tmp_path):
    from mnistgen.lab.data import Batches
    from mnistgen.lab.training import Recipe, Task, Trainer
    from mnistgen.cfg import LabelMLP
    x, labels = torch.randn(64, 2, 4, 4), torch.arange(64) % 10
    def trainer(recipe={}, **kw):
        data = Batches(x, labels, **dict(batch_size=32) | kw)
        return Trainer(Task('own', LabelMLP(width=32, blocks=1), DDPM(), data, data), Recipe(**dict(epochs=1, batch_size=32) | recipe), tmp_path/'run', 'cpu')
    for kw in (dict(batch_size=16), dict(seed=3), dict(recipe=dict(seed=3))): assert 'give both the same' in refusal(trainer, **kw)
    assert trainer(drop=.3).record['recipe']['drop_labels'] == .3 and trainer(drop=.3, recipe=dict(seed=3), seed=3)

def test_a_truth_is_a_truth():
    from mnistgen.rectified_flow import RectifiedFlow
    for f in (lambda v: DDPM(clip=v).config['clip'], lambda v: RectifiedFlow(clip=v).config['clip'], lambda v: DDPM(predict='v', zero_snr=v).config['zero_snr']):
        for v in (True, np.bool_(True), torch.tensor(True)): assert f(v) is True
        for v in ('yes', 2., 1, None): assert 'choose on or off' in refusal(f, v)

def test_headers_and_paths(tmp_path, monkeypatch):
    (tmp_path/'big').write_bytes(gzip.compress(b'\0\0\x08\x03' + struct.pack('>3I', 2**31, 2**31, 4)))
    assert 'promises 18446744073709551616 bytes' in refusal(read_idx, tmp_path/'big')
    monkeypatch.setenv('MNISTGEN_DATA', '')
    assert len(load_images(split='test')) == 10_000
    monkeypatch.setenv('HOME', str(tmp_path))
    assert str(tmp_path/'digits') in refusal(load_images, root='~/digits')

# ---- which data

def write_idx(path, a):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f'>I{a.ndim}I', 0x800 + a.ndim, *a.shape) + a.byte().numpy().tobytes())

def write_data(folder, turn=0, dot=False):
    "300 digits as four IDX files, turned by quarters; the names as published or as 7-zip unpacks them."
    images = load_images(split='test')
    for stem in ('train', 't10k'):
        for kind, a in (('images-idx3', images.pixels[:300].rot90(turn, (1, 2)).contiguous()), ('labels-idx1', images.labels[:300])):
            write_idx(folder/(f'{stem}-{kind}-ubyte'.replace('-idx', '.idx') if dot else f'{stem}-{kind}-ubyte'), a)
    return folder

def test_a_run_goes_on_with_its_own_data_alone(tmp_path, capsys):
    "The header says what was read, by name and checksum; other data of the same size are refused."
    a, b = write_data(tmp_path/'Upright'/'raw'), write_data(tmp_path/'turned', 1, dot=True)
    line = f'train cfg-fast --epochs 1 --batch-size 64 --limit 256 --device cpu --out {tmp_path}/run --data '
    assert main([*line.split(), str(a.parent)]) == 0
    weights = tmp_path/'run'/'cfg-fast.safetensors'
    images, said = load_images(root=a), read_header(weights)['data']
    assert said == dict(name='Upright', images=256, range=[-1, 1], checksum=checksum(dict(pixels=images.pixels[:256], labels=images.labels[:256])),
                        test_checksum=checksum(dict(pixels=images.pixels[:256], labels=images.labels[:256])))
    assert main([*line.split(), str(b), '--resume']) == 2
    assert 'was started with data' in (err := capsys.readouterr().err) and err.count('\n') == 1
    # a state of before, which has no checksum and calls everything mnist
    state = tmp_path/'run'/'state.safetensors'
    tensors, header = load_checkpoint(state)
    header['data'] = dict(name='mnist', images=256, range=[-1, 1])
    save_checkpoint(state, tensors, header)
    assert main([*line.split(), str(a), '--resume']) == 0
    capsys.readouterr()
    assert main(f'evaluate {weights} --n 4 --steps 2'.split()) == 0
    assert f"trained on Upright: 256 images, checksum {said['checksum'][:8]}" in capsys.readouterr().out
    assert main(f'evaluate {weights} --n 4 --steps 2 --json'.split()) == 0
    assert json.loads(capsys.readouterr().out)['data'] == said

def test_other_test_images_are_other_data(tmp_path, capsys):
    "Losses are evaluated on them. A run of before, which knows nothing of them, goes on."
    data, other = write_data(tmp_path/'a'), write_data(tmp_path/'b')
    write_idx(other/'t10k-images-idx3-ubyte', load_images().pixels[:300])
    line = f'train cfg-fast --epochs 1 --batch-size 64 --limit 256 --device cpu --resume --out {tmp_path}/run --data'.split()
    assert main([*line, str(data)]) == 0
    assert main([*line, str(other)]) == 2
    assert 'test_checksum' in (err := capsys.readouterr().err.splitlines()[-1]) and 'was started with data' in err
    state = tmp_path/'run'/'state.safetensors'
    tensors, header = load_checkpoint(state)
    del header['data']['test_checksum']
    save_checkpoint(state, tensors, header | dict(data=header['data'] | dict(name='b')))
    assert main([*line, str(other)]) == 0

def test_the_name_of_data_is_that_of_what_was_read(tmp_path, monkeypatch):
    assert load_images(split='test').name == 'mnist'
    monkeypatch.setenv('MNISTGEN_DATA', str(write_data(tmp_path/'MNIST'/'raw').parent))
    assert load_images(split='test').name == 'MNIST, not the published files'
    monkeypatch.setenv('MNISTGEN_DATA', str(mnistgen.lab.data.BUNDLED))
    assert load_images(split='test').name == 'mnist'

def test_data_by_name_or_folder(tmp_path, capsys):
    for data in ('cifar', tmp_path):
        assert main(f'train cfg-fast --epochs 1 --data {data} --out {tmp_path}/run'.split()) == 2
        assert str(data) in (err := capsys.readouterr().err) and err.count('\n') == 1
    assert not (tmp_path/'run').exists()
    write_data(tmp_path/'data'/'FashionMNIST'/'raw')
    assert load_images(root=tmp_path/'data').name == 'FashionMNIST'

def test_a_trainer_of_ones_own_looks_at_its_data(tmp_path):
    "A task that says nothing of its data is known by their checksum."
    from mnistgen.lab.data import Batches, normalize
    from mnistgen.lab.training import Recipe, Task, Trainer
    from mnistgen.ldm import MLP
    def trainer(first):
        data = Batches(load_images(split='test').pixels[first:first + 64], batch_size=32, transform=lambda x: normalize(x)[..., :4, :4])
        return Trainer(Task('own', MLP((1, 4, 4), 16, 1), DDPM(), data, data), Recipe(epochs=2, batch_size=32), tmp_path/'run', 'cpu')
    trainer(0).fit()
    assert trainer(0).fit(resume=True)['data']['checksum']
    assert 'was started with data' in refusal(trainer(64).fit, resume=True)

# ---- numbers that are numbers

NUMBERS = dict(numpy=np.float32(.5), array=np.array(.5), torch=torch.tensor(.5), gradient=torch.tensor(.5, requires_grad=True))
NOT = dict(truth=True, numpy_truth=np.bool_(True), torch_truth=torch.tensor(True), nan=float('nan'), inf=np.float32('inf'), text='.5', huge=10**400, meta=torch.empty((), device='meta'))

@pytest.mark.parametrize('where', ['lr', 'weight_decay', 'minutes', 'ema', 'clip_grad', 'drop_labels', 'temperature', 'eta', 'w', 'beta', 'scale'])
def test_a_number_is_a_finite_number_of_python(where):
    "Scalars of numpy and torch become Python's own; what is no finite number is refused in one line, that names it."
    from mnistgen.lab.training import Recipe
    from mnistgen.ldm import Latents
    from mnistgen.vae import ELBO
    g = mnistgen.load('cfg-fast', 'cpu')
    def read(v):
        if where in Recipe.__dataclass_fields__: return getattr(Recipe(lr_min=0, **{where: v}), where)
        if where == 'beta': return ELBO(v).config['beta']
        if where == 'scale': return Latents(g.space.autoencoder, v).scale
        return g.plan(labels=3, sampler='ddim', **{where: v}).sampling.json()[where]
    for k, v in NUMBERS.items(): assert type(read(v)) is float and read(v) == .5, k
    for k, v in NOT.items(): assert where in (said := refusal(read, v)) and '\n' not in said, k

def test_an_integer_is_an_integer_of_python():
    from mnistgen.lab.training import Recipe
    from mnistgen.unet import UNet
    g = mnistgen.load('ldm-fast', 'cpu')
    for v in (np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)):
        for n in (g.plan(n=v).n, g.plan(seed=v).seed, g.plan(steps=v).sampling.steps, DDPM(T=v).config['T'], Recipe(epochs=v).epochs, Recipe(stages=[v]).stages[0]): assert type(n) is int and n == 3
        assert g.sample(1, steps=2, first=v).equal(g.sample(4, steps=2)[3:])
    for v in (True, 3., float('nan'), '3', -4):
        for f in (lambda: g.plan(n=v), lambda: g.plan(seed=v), lambda: g.sample(1, steps=2, first=v), lambda: g.stream(1, steps=2, first=v), lambda: DDPM(T=v), lambda: Recipe(stages=[v]), lambda: Recipe(stages=v)):
            assert '\n' not in refusal(f)
    net = UNet(np.array([32, 32]), np.int64(1), np.int64(1), groups=np.int64(32))
    assert json.dumps(net.config)

def test_a_run_that_cannot_be_written_down_does_not_begin(tmp_path):
    from mnistgen.lab.data import Batches, normalize
    from mnistgen.lab.training import Recipe, Task, Trainer
    from mnistgen.ldm import MLP
    data = Batches(load_images(split='test').pixels[:64], batch_size=32, transform=lambda x: normalize(x)[..., :4, :4])
    for header in (dict(note={1, 2}), dict(note=float('nan'))):
        said = refusal(Trainer, Task('own', MLP((1, 4, 4), 16, 1), DDPM(), data, data, header=header), Recipe(epochs=1, batch_size=32), tmp_path/'run', 'cpu')
        assert 'JSON' in said and '\n' not in said
    recipe = Recipe(process=dict(beta=torch.tensor(.5), anneal=np.float32(.5), clip=False))
    assert recipe.process == dict(beta=.5, anneal=.5, clip=False) and json.dumps(recipe.process)

@pytest.mark.parametrize('flag', ['--minutes inf', '--minutes nan', '--epochs inf', '--batch-size nan', '--seed 1.5', '--limit inf'])
def test_the_command_line_takes_finite_numbers(flag, tmp_path, capsys):
    assert main(f'train cfg-fast {flag} --out {tmp_path}/run'.split()) == 2
    assert (err := capsys.readouterr().err).count('\n') == 1 and flag.split()[1] in err and not (tmp_path/'run').exists()

# ---- weights that the trainer cannot keep

class Dropping(torch.nn.Module):
    "A network that draws by itself, has its numbers in a plain tensor and some beyond half precision."
    def __init__(self):
        super().__init__()
        self.lin, self.drop = torch.nn.Linear(16, 16), torch.nn.Dropout(.5)
        self.large = torch.nn.Parameter(torch.full((2,), 1e5))

    def forward(self, x, t, label=None): return self.lin(self.drop(x.flatten(1))).view(x.shape) + 0*self.large.sum()

def own_trainer(out, net=Dropping, **recipe):
    from mnistgen.lab.data import Batches, normalize
    from mnistgen.lab.training import Recipe, Task, Trainer
    data = Batches(load_images(split='test').pixels[:64], batch_size=32, transform=lambda x: normalize(x)[..., :4, :4])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Trainer(Task('own', net(), DDPM(), data, data), Recipe(**dict(epochs=3, batch_size=32) | recipe), out, 'cpu')

def test_a_network_that_draws_by_itself_resumes_to_the_same(tmp_path):
    from conftest import stopped_at
    before = torch.random.get_rng_state()
    whole = own_trainer(tmp_path/'whole').fit()['history']
    torch.randn(3)                                                                    # something else draws
    with stopped_at(3), pytest.raises(KeyboardInterrupt): own_trainer(tmp_path/'run').fit(save_every=-1)
    torch.randn(5)
    assert [h['train_loss'] for h in own_trainer(tmp_path/'run').fit(resume=True)['history']] == [h['train_loss'] for h in whole]
    a, b = [load_checkpoint(tmp_path/k/'own.safetensors')[0] for k in ('whole', 'run')]
    assert all(a[k].equal(b[k]) for k in a) and a['lin.weight'].dtype == torch.float16
    assert a['large'].tolist() == pytest.approx([1e5, 1e5], rel=.1)                   # infinite as float16
    torch.random.set_rng_state(before)

def test_parameters_in_the_same_memory_are_refused(tmp_path):
    class Shared(Dropping):
        def __init__(self):
            super().__init__()
            self.again = torch.nn.Parameter(self.lin.weight.data)
    said = refusal(own_trainer, tmp_path/'run', Shared)
    assert 'again' in said and 'lin.weight' in said and '\n' not in said

def test_tied_weights_are_refused_by_both_names(tmp_path):
    from mnistgen.lab.data import Batches, normalize
    from mnistgen.lab.training import Recipe, Task, Trainer
    from mnistgen.ldm import MLP
    net = MLP((1, 4, 4), 16, 2)
    net.blocks[1].lin1.weight = net.blocks[0].lin1.weight
    data = Batches(load_images(split='test').pixels[:64], batch_size=32, transform=lambda x: normalize(x)[..., :4, :4])
    said = refusal(Trainer, Task('own', net, DDPM(), data, data), Recipe(epochs=1, batch_size=32), tmp_path/'run', 'cpu')
    assert 'blocks.0.lin1.weight' in said and 'blocks.1.lin1.weight' in said and '\n' not in said and not (tmp_path/'run').exists()

# ---- diffusers

SMALL = dict(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(32, 64), layers_per_block=1, down_block_types=('DownBlock2D', 'AttnDownBlock2D'), up_block_types=('AttnUpBlock2D', 'UpBlock2D'))

def of_diffusers(**changes):
    diffusers = pytest.importorskip('diffusers', reason='diffusers is not installed')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.UNet2DModel(**SMALL | changes).eval()

@pytest.mark.parametrize('changes', [{}, dict(attention_head_dim=16), dict(norm_num_groups=16), dict(layers_per_block=2, in_channels=3), dict(act_fn='swish', dropout=.1)])
def test_a_model_of_diffusers_answers_as_it_did(changes):
    from mnistgen.unet import UNet
    theirs = of_diffusers(**changes)
    x, t = torch.randn(2, theirs.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    with torch.no_grad():
        want = theirs(x, t).sample
        for net in (UNet.from_diffusers(theirs), UNet.from_diffusers(theirs.state_dict(), config=dict(theirs.config))):
            assert (net.eval()(x, t) - want).abs().max() < 1e-5

@pytest.mark.parametrize('changes', [dict(freq_shift=1), dict(flip_sin_to_cos=False), dict(act_fn='relu'), dict(downsample_padding=0), dict(mid_block_scale_factor=2), dict(norm_eps=1e-6), dict(center_input_sample=True),
                                     dict(attention_head_dim=None), dict(downsample_type='resnet', upsample_type='resnet'), dict(resnet_time_scale_shift='scale_shift'), dict(num_class_embeds=10), dict(time_embedding_type='fourier'),
                                     dict(add_attention=False), dict(attn_norm_num_groups=8), dict(down_block_types=('DownBlock2D', 'DownBlock2D'), up_block_types=('UpBlock2D', 'SkipUpBlock2D'))])
def test_a_model_of_diffusers_that_differs_is_refused_by_name(changes):
    from mnistgen.unet import UNet
    try: theirs = of_diffusers(**changes)
    except (ValueError, TypeError, KeyError, AttributeError) as e: pytest.skip(f'not in this diffusers: {e}')
    said = refusal(UNet.from_diffusers, theirs)
    assert any(k in said for k in changes) and '\n' not in said, said

# ---- edges

def cli(*line, env, cwd, **kw):
    p = subprocess.run([sys.executable, '-m', 'mnistgen.zoo.cli', *map(str, line)], cwd=cwd, env=env | dict(PYTHONPATH=str(root)), capture_output=True, text=True, **kw)
    return p.returncode, p.stdout, p.stderr

@pytest.mark.parametrize('out', ['a.png', 'a.npy'])
def test_a_full_disk_names_the_file(out, env, tmp_path):
    "A limit on the size of files stands for the disk."
    resource = pytest.importorskip('resource')
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    code, _, err = cli('sample', 'ldm-fast', '--steps', 2, '--plain', '--out', out, env=env, cwd=tmp_path, preexec_fn=limit)
    assert code == 1 and out in err and '.tmp' not in err and err.count('\n') == 1 and not list(tmp_path.iterdir()), err

def test_whoever_writes_a_file_says_which(tmp_path):
    from mnistgen.lab.store import write_atomically
    for e in (OSError(28, 'No space left on device'), OSError('9 requested and 5 written')):
        def fail(tmp): raise e
        with pytest.raises(OSError) as caught: write_atomically(tmp_path/'a', fail)
        assert str(tmp_path/'a') in str(caught.value) and 'Errno None' not in str(caught.value) and not list(tmp_path.iterdir())

def test_a_process_alone_speaks_whatever_its_rank(env, tmp_path):
    env = env | dict(RANK='1')
    code, _, err = cli('sample', 'gan', '--out', 'a.png', env=env, cwd=tmp_path)
    assert code == 2 and 'unknown model' in err
    code, out, err = cli('train', 'cfg-fast', '--epochs', 1, '--batch-size', 64, '--limit', 64, '--device', 'cpu', '--out', 'a run', env=env, cwd=tmp_path)
    assert code == 0 and "mnistgen sample 'a run/cfg-fast.safetensors'" in out and (tmp_path/'a run'/'cfg-fast.safetensors').exists(), err

def test_a_home_that_cannot_be_written_leaves_nothing_behind(env, tmp_path):
    "Paths with spaces and umlauts; a file in the place of the cache stands for a read-only home, which root would not notice."
    home, tmp, work = [tmp_path/n for n in ('read only', 'tmp', 'Größe und Maß')]
    for d in (home, tmp, work): d.mkdir()
    (home/'.cache').touch()
    home.chmod(0o500)
    env = {k: v for k, v in env.items() if k != 'XDG_CACHE_HOME'} | dict(HOME=str(home), TMPDIR=str(tmp))
    code, out, err = cli('sample', 'ddpm-fast', '--n', 4, '--steps', 2, '--out', 'Bilder für alle.PNG', env=env, cwd=work)
    assert code == 0 and 'Bilder für alle.PNG: 4 images' in out, err
    code, out, err = cli('train', 'cfg-fast', '--epochs', 1, '--batch-size', 64, '--limit', 64, '--device', 'cpu', '--out', work/'Lauf ä', env=env, cwd=work)
    assert code == 0 and f"'{work}/Lauf ä/cfg-fast.safetensors'" in out, err
    assert not [p for p in tmp.iterdir() if not p.name.startswith('torch')]

def test_home_is_meant_by_a_tilde_in_every_path(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('HOME', str(tmp_path))
    write_data(tmp_path/'data')
    assert main('train cfg-fast --epochs 1 --batch-size 64 --limit 64 --device cpu --data ~/data --out ~/run'.split()) == 0
    assert main('train cfg-fast --epochs 1 --batch-size 64 --limit 64 --device cpu --start ~/run/cfg-fast.safetensors --out ~/further'.split()) == 0
    assert main('sample ~/run/cfg-fast.safetensors --n 4 --steps 2 --out ~/a.NPY'.split()) == 0
    assert main('evaluate ~/a.NPY --out ~/near.PNG'.split()) == 0
    assert {'run', 'further', 'a.NPY', 'near.PNG'} <= {p.name for p in tmp_path.iterdir()}
    assert mnistgen.load('~/run/cfg-fast.safetensors', 'cpu').header['data']['name'] == 'data'
    assert refusal(load_images, root='~nobody-of-that-name/x').count('\n') == 0

# ---- what a person expects

@pytest.mark.parametrize('n', [2, 5, 7, 9, 64])
def test_a_grid_is_read_back_as_it_was_drawn(n, tmp_path, capsys):
    from mnistgen.lab.plotting import read_png, save_grid
    line = f'sample ldm-fast --n {n} --steps 2 --out {tmp_path}'
    assert main(f'{line}/a.png'.split()) == main(f'{line}/a.npy'.split()) == 0
    want = torch.from_numpy(np.load(tmp_path/'a.npy'))
    assert read_png(tmp_path/'a.png').equal(want)
    save_grid(want, tmp_path/'b.png', scale=1, ncol=2)
    assert read_png(tmp_path/'b.png').equal(want)
    capsys.readouterr()
    assert main(f'evaluate {tmp_path}/a.png --json'.split()) == main(f'evaluate {tmp_path}/a.npy --json'.split()) == 0
    png, npy = [json.loads(l) for l in capsys.readouterr().out.splitlines()]
    assert png['train'] == npy['train'] and png['n'] == n

def test_a_folder_of_pictures(tmp_path, capsys):
    from PIL import Image
    from mnistgen.lab.plotting import save_grid
    digits, folder = load_images(split='test').pixels[:9], tmp_path/'Bilder für alle'
    folder.mkdir()
    for i in range(4): Image.fromarray(digits[i].numpy()).convert(('L', 'RGB', 'RGBA', 'P')[i]).save(folder/f'{i}.{("png", "PNG")[i % 2]}', format='PNG')
    save_grid(digits[4:], folder/'more.png')
    (folder/'notes.txt').write_text('no picture')
    np.save(tmp_path/'same.npy', digits.numpy())
    assert main(['evaluate', str(folder), '--json']) == main(['evaluate', str(tmp_path/'same.npy'), '--json']) == 0
    png, npy = [json.loads(l) for l in capsys.readouterr().out.splitlines()]
    assert png['train'] == npy['train'] and png['n'] == 9
    Image.fromarray(np.zeros((30, 41), np.uint8)).save(folder/'odd.png')
    assert main(['evaluate', str(folder)]) == 2
    assert 'odd.png' in (err := capsys.readouterr().err) and err.count('\n') == 1
    assert main(['evaluate', str(tmp_path/'none.png')]) == 2
    assert 'none.png: no such file' in capsys.readouterr().err

def test_a_network_of_others_draws():
    "A network of diffusers, and a plain net(x, t), draw what the same weights draw here."
    from mnistgen.lab.options import Sampling
    from mnistgen.lab.data import Pixels
    from mnistgen.zoo.generator import Adapter, Generator
    from mnistgen.unet import UNet
    theirs = of_diffusers(sample_size=32)
    ours = UNet.from_diffusers(theirs, pad_to=32)
    draw = lambda net: Generator(net, DDPM(), Pixels(), Sampling('ddim', 3), plain=True).sample(3)
    want = draw(ours)
    assert (draw(Adapter(theirs, pad_to=32)) - want).abs().max() < 1e-3
    assert draw(Adapter(lambda x, t: ours(x, t))).equal(want)
    assert draw(Adapter(lambda x, t: (ours(x, t),))).equal(want)
    assert (Generator(Adapter(theirs, pad_to=32), DDPM(), Pixels(), Sampling('ddim', 3)).sample(3) - want).abs().max() < 1e-3
    g = Generator(Adapter(theirs, pad_to=32), DDPM(), Pixels(), Sampling('ddim', 3))
    assert 'takes no labels' in refusal(g.sample, labels=3)
    assert 'must answer a tensor' in refusal(draw, Adapter(lambda x, t: 'no'))

def test_a_run_resumed_with_more_epochs_names_start(run_folder, capsys):
    assert main(f'train cfg-fast --epochs 3 --batch-size 64 --limit 64 --device cpu --resume --out {run_folder}'.split()) == 2
    assert f'--start {run_folder}/cfg-fast.safetensors' in (err := capsys.readouterr().err) and err.count('\n') == 1

def test_resuming_nothing_says_that_it_begins_anew(tmp_path, capsys):
    assert main(f'train cfg-fast --epochs 1 --batch-size 64 --limit 64 --device cpu --resume --out {tmp_path}/run'.split()) == 0
    assert f'{tmp_path}/run: holds no run to resume, begins anew' in (err := capsys.readouterr().err) and err.count('\n') == 1

def test_results_that_are_not_installed(tmp_path):
    from mnistgen.lab.plotting import load_grid
    from mnistgen.lab.store import Results, read_results
    r = Results('x', tmp_path/'results')
    for f in (lambda: r.read('a'), lambda: r.load('a'), lambda: r.load_arrays('a'), lambda: read_results('a', tmp_path), lambda: load_grid(tmp_path/'a.png', 4)):
        said = refusal(f, error=FileNotFoundError)
        assert 'a.' in said and 'clone the repository' in said and '\n' not in said

@pytest.mark.parametrize('nb', notebooks(), ids=str)
def test_results_are_opened_in_one_way(nb):
    "By functions that say what is missing, as where a notebook is opened after pip install alone; and the package is found wherever it is."
    cells = [''.join(c['source']) for c in json.loads((root/nb).read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    lines = [l for c in cells if not re.search(r'^#\|\s*(slow|export)', c, re.M) for l in c.splitlines()]
    assert [l for l in lines if re.search(r'(?i)results', l) and re.search(r'np\.load\(|read_text\(|read_bytes\(|(?<!\w)open\(', l) and 'result_file' not in l] == []
    assert [l for l in lines if re.search(r"\.\./mnistgen", l)] == []

# ---- damaged files

def mutations(raw, n, seed):
    "n damaged copies: bytes changed, mostly at the beginning, cut out, put in twice, cut off; the same ones each time."
    rng = np.random.default_rng(seed)
    for _ in range(n):
        a = bytearray(raw)
        for _ in range(rng.integers(1, 5)):
            i = int(rng.integers(min(len(a), 200) if rng.random() < .7 else len(a))) if a else 0
            kind = rng.integers(5)
            if kind == 0 and a: a[i] = int(rng.integers(256))
            if kind == 1 and a: a[i] ^= 1 << int(rng.integers(8))
            if kind == 2: del a[i:i + int(rng.integers(1, 20))]
            if kind == 3: a[i:i] = a[i:i + int(rng.integers(1, 20))]
            if kind == 4 and rng.random() < .3: del a[i:]
        yield bytes(a)

def loaders():
    from mnistgen.lab.plotting import read_png, save_grid
    from mnistgen.zoo.cli import _read_array, images_of
    from mnistgen.zoo.models import load
    pixels = load_images(split='test').pixels[:6]
    def idx(p): write_idx(p, pixels)
    def packed(p):
        write_idx(p, pixels)
        p.write_bytes(gzip.compress(p.read_bytes(), mtime=0))
    return {'idx': (idx, read_idx), 'idx.gz': (packed, read_idx), 'npy': (lambda p: np.save(p, pixels.numpy()), images_of), 'png': (lambda p: save_grid(pixels, p), read_png),
            'safetensors': (lambda p: save_checkpoint(p, dict(a=torch.arange(6.), b=torch.ones(2, 3).half()), dict(model='ldm-fast', network={}, data=dict(name='mnist'))), load)}

@pytest.mark.parametrize('kind', ['idx', 'idx.gz', 'npy', 'png', 'safetensors'])
@pytest.mark.filterwarnings('ignore')
def test_a_damaged_file_is_read_or_refused_in_one_line(kind, tmp_path):
    write, read = loaders()[kind]
    path, refused = tmp_path/f'a.{kind.removesuffix(".gz")}', 0
    write(path)
    for i, raw in enumerate(mutations(path.read_bytes(), 1000, 7)):
        path.write_bytes(raw)
        try: read(path)
        except ValueError as e:
            refused += 1
            assert '\n' not in str(e) and str(path) in str(e), (i, e)
    assert refused > 200

def test_a_sealed_header_that_says_something_else_is_refused(tmp_path):
    "Headers whose checksums are right, but whose content is not what a model of this version has."
    tensors, header = load_checkpoint(root/'mnistgen/weights/cfg-fast.safetensors')
    rng, keys = np.random.default_rng(3), list(header)
    odd = [None, 3, 'x', [], {}, -1.5, True, [[1]], {'x': 1}]
    for i in range(300):
        changed = dict(header)
        for _ in range(rng.integers(1, 4)):
            k = keys[rng.integers(len(keys))]
            if rng.random() < .3: changed.pop(k, None)
            else: changed[k] = odd[rng.integers(len(odd))]
        save_checkpoint(tmp_path/'a.safetensors', tensors if i % 10 == 0 else {'a': torch.zeros(2)}, changed)
        try: repr(mnistgen.load(tmp_path/'a.safetensors', 'cpu'))
        except ValueError as e: assert '\n' not in str(e), (i, e)

def test_several_data_sets_in_a_folder_are_named(tmp_path):
    for name in ('FashionMNIST', 'KMNIST'): write_data(tmp_path/name/'raw')
    said = refusal(load_images, root=tmp_path)
    assert all(str(tmp_path/name/'raw') in said for name in ('FashionMNIST', 'KMNIST')) and '\n' not in said

# ---- networks that were changed

def _convolutions(net): return [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]

def _circular(net):
    for m in _convolutions(net):
        if m.padding == (1, 1) and m.stride == (1, 1): m.padding_mode, m._reversed_padding_repeated_twice = 'circular', [1]*4

def _replaced_forward(net):
    conv = _convolutions(net)[3]
    conv.forward = lambda x, forward=conv.forward: 10*forward(x)

def _no_attention(net):
    for name, m in list(net.named_modules()):
        if type(m).__name__ == 'Attention': net.set_submodule(name, torch.nn.Identity())

CHANGES = {'circular padding': _circular, 'a replaced forward': _replaced_forward, 'no attention': _no_attention,
           'a hook': lambda net: _convolutions(net)[3].register_forward_hook(lambda m, args, out: 10*out),
           'a hook before': lambda net: _convolutions(net)[3].register_forward_pre_hook(lambda m, args: (10*args[0],)),
           'no bias': lambda net: setattr(_convolutions(net)[3], 'bias', None),
           'weight norm': lambda net: torch.nn.utils.parametrizations.weight_norm(_convolutions(net)[3]),
           'dilation': lambda net: setattr(net.mid.res[0], 'conv1', torch.nn.Conv2d(64, 64, 3, padding=2, dilation=2)),
           'batch norm': lambda net: setattr(net.mid.res[0], 'norm1', torch.nn.BatchNorm2d(64)),
           'low rank': lambda net: setattr(net.mid.attn[0], 'v', torch.nn.Sequential(torch.nn.Linear(64, 4), torch.nn.Linear(4, 64))),
           'a level with a hook': lambda net: net.down[0].register_forward_hook(lambda *_: None),
           "a level's method": lambda net: setattr(net.down[0], 'block', lambda *a, block=net.down[0].block: 10*block(*a)),
           "a method of the network": lambda net: setattr(net, 'condition', lambda x, *a, condition=net.condition: condition(10*x, *a)),
           'a layer that is there twice': lambda net: net.mid.res.__setitem__(1, net.mid.res[0])}
# what is said of each: the layers and why, or nothing
SAYS = {'circular padding': "conv2 and 16 more: padding_mode='circular'", 'a replaced forward': 'down.0.resample: forward replaced', 'no attention': None, 'a hook': 'down.0.resample: a hook', 'a hook before': 'down.0.resample: a hook', 'no bias': 'down.0.resample: no bias',
        'weight norm': 'down.0.resample: parametrized', 'dilation': r'mid.res.0.conv1: padding=\(2, 2\)', 'batch norm': 'mid.res.0.norm1: a BatchNorm2d', 'low rank': 'mid.attn.0.v: a Sequential', 'a level with a hook': 'down.0: a hook',
        "a level's method": 'down.0: block replaced', 'a method of the network': 'the network: condition replaced', 'a layer that is there twice': None}

@pytest.mark.parametrize('what', CHANGES)
@pytest.mark.filterwarnings('ignore:the engine has no fast form')
def test_a_network_that_was_changed_answers_as_it_does(what):
    "The engine replaces what it knows and nothing else: the frozen network differs by rounding, as far as the unchanged one does."
    def off(change):
        net, rng = UNet(channels=(32, 64), attention=(False, True)).eval(), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in net.parameters(): p.copy_((.1 if p.ndim > 1 else 1.)*torch.randn(p.shape, generator=rng))
            x, t = torch.randn(2, 1, 28, 28, generator=rng), torch.tensor([500, 20])
            usual = net(x, t)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                change(net)
            out = net.eval()(x, t)
            return (freeze(net)(x, t) - out).abs().max()/out.abs().max(), (out - usual).abs().max()/usual.abs().max()
    (rounding, _), (error, changed) = off(lambda net: None), off(CHANGES[what])
    assert error < 3*rounding + 1e-4
    if what not in ('weight norm', 'a level with a hook'): assert changed > 2*(3*rounding + 1e-4)     # it would be seen

@pytest.mark.parametrize('what', CHANGES)
@pytest.mark.filterwarnings('ignore:the engine has no fast form')
def test_a_network_that_was_changed_learns_as_it_does(what):
    def changed():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = UNet(channels=(32, 64), attention=(False, True), pad_to=None)
            CHANGES[what](net)
        return net
    net, fast = changed(), changed()
    use_fast_kernels(fast)
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500, 20])
    a, b = [torch.autograd.grad(n(x, t).square().sum(), list(n.parameters()), allow_unused=True) for n in (net, fast)]
    long = lambda gradients: torch.cat([g.flatten() for g in gradients if g is not None])
    assert (long(a) - long(b)).norm() < 1e-4*long(a).norm()

@pytest.mark.parametrize('what', SAYS)
def test_what_takes_the_plain_way_is_said_in_one_line(what):
    net = UNet(channels=(32, 64), attention=(False, True))
    CHANGES[what](net)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        for _ in range(3): freeze(net)
    assert [re.search(SAYS[what], str(w.message)) and str(w.message).count('\n') for w in told if w.category is UserWarning] == ([0] if SAYS[what] else []), told

@pytest.mark.parametrize('name', [m['name'] for m in mnistgen.models()])
def test_nothing_is_said_of_what_has_no_fast_form_by_design(name):
    from mnistgen.zoo.generator import Adapter
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        net = mnistgen.load(name, 'cpu').net
        if not name.startswith('vae'): freeze(Adapter(net)), freeze(Adapter(lambda x, t: x))
        use_fast_kernels(net)
        if not name.startswith('vae'): freeze(net)

def test_hooks_on_the_way_back_are_called():
    "A layer inside of a residual block, of which the engine computes the gradient by hand."
    for where in ('mid.res.0', 'mid.res.0.conv1', 'up.0.res.0.norm2'):
        for register in ('register_full_backward_hook', 'register_full_backward_pre_hook'):
            net, seen = UNet(channels=(32, 64), pad_to=None), []
            getattr(net.get_submodule(where), register)(lambda *_: seen.append(where))
            with pytest.warns(UserWarning, match=f'{where}: a hook'): use_fast_kernels(net)
            net(torch.randn(2, 1, 8, 8), torch.tensor([1, 2])).sum().backward()
            assert seen == [where]

LATER = {'a sign': lambda net: net.conv_in.weight.data.neg_(),
         'a padding': lambda net: [_circular(net)],
         'a number': lambda net: setattr(net.mid.res[0].norm1, 'eps', 1e3),
         'heads': lambda net: setattr(net.mid.attn[0], 'heads', 2),
         'another size': lambda net: setattr(net, 'pad_to', 6),
         'a method': lambda net: setattr(net, 'condition', lambda x, *a, condition=net.condition: condition(2*x, *a)),
         'a part': lambda net: net.mid.attn.__setitem__(0, torch.nn.Identity()),
         'a hook': lambda net: net.conv_in.register_forward_hook(lambda m, args, out: 2*out),
         'a buffer': lambda net: net.gain.mul_(2),
         'a tensor': lambda net: net.plus.add_(2)}

class Gained(UNet):
    "With a buffer that is not kept, and a tensor that nothing knows of."
    def __init__(self):
        super().__init__(channels=(32, 64), in_channels=2, out_channels=2, pad_to=8, attention=(False, True))
        self.register_buffer('gain', torch.ones(1), persistent=False)
        self.plus = torch.zeros(1)

    def forward(self, x, t, label=None): return self.gain*super().forward(x, t) + self.plus

@pytest.mark.parametrize('what', LATER)
@pytest.mark.filterwarnings('ignore:the engine has no fast form')
def test_a_network_changed_in_place_draws_as_it_is(what):
    "Whatever the change."
    from mnistgen.lab.options import Sampling
    from mnistgen.zoo.generator import Generator
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Gained()
        for p in net.mid.attn.parameters(): torch.nn.init.normal_(p)
    g = Generator(net, DDPM(clip=False), mnistgen.load('ldm-fast', 'cpu').space, Sampling('ddim', 2))
    before = g.sample(2, decoded=False)
    with torch.no_grad(): LATER[what](g.net)
    after = g.sample(2, decoded=False)
    g.plain = True
    want = g.sample(2, decoded=False)
    assert (after - want).abs().max() < .2*(before - want).abs().max()

def test_an_autoencoder_changed_in_place_decodes_as_it_is():
    a = mnistgen.load('vae-light', 'cpu')
    g = mnistgen.load('cfg-fast', 'cpu')
    before, drawn = a.sample(2), g.sample(2, steps=2)
    assert a.sample(2).equal(before)
    with torch.no_grad():
        for autoencoder in (a, g.space.autoencoder): autoencoder.net.decoder[0].weight.neg_()
    after = a.sample(2)
    a.plain = True
    assert (after - a.sample(2)).abs().mean() < .1*(before - after).abs().mean() and not g.sample(2, steps=2).equal(drawn)
