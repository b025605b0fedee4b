"The `mnistgen` command as it is installed: what it prints, what it writes, how it exits."
import json, re, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from conftest import root
from mnistgen.zoo import cli
from mnistgen.zoo.cli import main
from mnistgen.lab.store import load_checkpoint, read_header

exe = Path(sys.executable).parent/'mnistgen'

@pytest.fixture
def mnistgen(env, tmp_path):
    "Run a command line in an empty folder."
    def call(line, **extra): return subprocess.run([exe, *line.split()], cwd=tmp_path, env=env | extra, capture_output=True, text=True, timeout=900)
    return call

def test_list(mnistgen):
    r = mnistgen('list')
    assert r.returncode == 0 and r.stdout.split()[:4] == ['name', 'parameters', 'epochs', 'train_loss'] and re.search(r'^ddpm +2711073 +\d+ +0\.0\d+', r.stdout, re.M)
    assert mnistgen('list --names').stdout.split() == [l.split()[0] for l in r.stdout.splitlines()[1:]]

def test_sample_writes_what_it_says_and_again_the_same(mnistgen, tmp_path):
    for name in ('a.npy', 'b.npy', 'a.png', 'b.png', 'new/folder/c.npy'):
        r = mnistgen(f'sample ddpm --n 5 --sampler ddim --steps 4 --eta 0.5 --seed 3 --out {name}')
        assert r.returncode == 0 and f'{name}: 5 images of ddpm, DDIM-4, η = 0.5, seed 3' in r.stdout and r.stderr == ''
    a = np.load(tmp_path/'a.npy')
    assert a.shape == (5, 28, 28) and a.dtype == np.uint8 and a.max() > 100
    assert (tmp_path/'a.npy').read_bytes() == (tmp_path/'b.npy').read_bytes() == (tmp_path/'new/folder/c.npy').read_bytes()
    assert (tmp_path/'a.png').read_bytes() == (tmp_path/'b.png').read_bytes() and Image.open(tmp_path/'a.png').mode == 'L'
    assert mnistgen('sample ddpm --n 5 --sampler ddim --steps 4 --eta 0.5 --seed 4 --out d.npy').returncode == 0
    assert np.abs(np.load(tmp_path/'d.npy').astype(int) - a).mean() > 5
    assert not [p for p in tmp_path.iterdir() if p.name.endswith('.tmp')]

wrong = {'': 'usage', 'bake ddpm': 'choose list, sample, train', 'sample': 'required', 'sample gan --out x.png': 'choose ddpm', 'sample ddpm': '.png or .npy', 'sample ddpm --out x.gif': '.png or .npy',
         'sample ddpm --n 0 --out x.png': 'n 0', 'sample ddpm --n -4 --out x.png': 'n -4', 'sample ddpm --n many --out x.png': 'invalid int', 'sample ddpm --seed -1 --out x.png': 'seed -1',
         'sample ddpm --sampler eulr --out x.png': "unknown sampler 'eulr': choose ddpm", 'sample ddpm --steps 0 --out x.png': 'from 1 to 1000', 'sample ddpm --steps 1001 --out x.png': 'from 1 to 1000',
         'sample ddpm --eta 1.5 --out x.png': 'from 0 to 1', 'sample ddpm --eta -0.5 --out x.png': 'from 0 to 1', 'sample ddpm --sampler ddpm --eta 1 --out x.png': 'eta belongs to',
         'sample ddpm --spacing even --out x.png': 'leading, trailing, log-snr or a positive number', 'sample ddpm --spacing nan --out x.png': 'positive number', 'sample ddpm --spacing -1 --out x.png': 'positive number', 'sample ddpm --sampler ddpm --spacing 0.5 --out x.png': 'spacing belongs to',
         'sample ddpm --temperature -1 --out x.png': 'at least 0', 'sample ddpm --temperature nan --out x.png': 'at least 0', 'sample ddpm --sampler ddpm --temperature 1 --out x.png': 'temperature belongs to',
         'sample ddpm --labels 7 --out x.png': 'unconditional', 'sample ddpm --labels seven --out x.png': 'digits', 'sample ddpm --w 3 --out x.png': 'unconditional', 'sample ddpm --out full/x.png': 'cannot be written',
         'sample ddpm --device abacus --out x.png': 'choose auto', 'sample none.safetensors --out x.png': 'no such file', 'sample cut.safetensors --out x.png': 'damaged', 'sample ddpm --colour red --out x.png': 'unrecognized',
         'sample vae --steps 5 --out x.png': 'leave steps out', 'sample vae --labels 7 --out x.png': 'leave labels out', 'sample vae-light --n 0 --out x.png': 'n 0', 'evaluate vae --eta 1': 'leave eta out', 'train vae --start ddpm': 'its network has',
         'train': 'required', 'train gan': 'choose ddpm', 'train ddpm --budget huge': 'choose report or quick', 'train ddpm --epochs 0': 'at least 1', 'train ddpm --batch-size -1': 'at least 1',
         'train ddpm --batch-size 60001': 'from 1 to 60000', 'train ddpm --seed -1': 'seed -1', 'sample ddpm --eta nan --out x.png': 'from 0 to 1', 'sample ddpm --out folder.png': 'is a folder', 'sample flipped.safetensors --out x.png': 'checksum', 'sample ddpm --device meta --out x.png': 'choose auto', 'train ddpm --out run --resume --plain': 'damaged', 'train ddpm --limit 0': 'limit 0', 'train ddpm --device abacus': 'choose auto', 'sample ddpm --autoencoder vae --out x.png': 'does not work in latents', 'train ddpm --autoencoder vae': 'does not work in latents', 'evaluate ddpm --autoencoder vae': 'does not work in latents',
         'train ldm --autoencoder ddpm': 'not an autoencoder', 'train ldm --autoencoder gan': 'unknown model', 'train ldm --autoencoder none.safetensors': 'no such file', 'train ldm --autoencoder cut.safetensors': 'damaged', 'train ddpm --out full': 'cannot be written', 'list --everything': 'unrecognized'}

@pytest.mark.parametrize('line', wrong)
def test_bad_input_gets_one_line_and_status_2(line, tmp_path, monkeypatch, capsys):
    (tmp_path/'full').write_text('a file where a folder is wanted')
    (tmp_path/'cut.safetensors').write_bytes((root/'mnistgen/weights/ddpm.safetensors').read_bytes()[:5000])
    weights = bytearray((root/'mnistgen/weights/ddpm.safetensors').read_bytes()); weights[-1000] ^= 1
    (tmp_path/'flipped.safetensors').write_bytes(weights)
    (tmp_path/'folder.png').mkdir(); (tmp_path/'run').mkdir(); (tmp_path/'run/state.safetensors').write_bytes(b'half a state')
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.count('\n') == 1 and wrong[line] in err, err
    assert sorted(tmp_path.iterdir()) == before                     # nothing was made

def test_the_installed_command_exits_with_2(mnistgen):
    r = mnistgen('sample gan --out x.png')
    assert (r.returncode, r.stdout, r.stderr) == (2, '', f"mnistgen: unknown model 'gan': choose {', '.join(list(cli.MODELS)[:-1])} or {list(cli.MODELS)[-1]}\n")

def test_an_autoencoder_is_sampled_trained_and_resumed(mnistgen, tmp_path):
    "Noise, decoded; and a short training, which gives weights with a scale, and gives them again if it is gone on with after its end."
    for name in ('a.npy', 'b.npy'):
        r = mnistgen(f'sample vae --n 3 --seed 1 --out {name}')
        assert (r.returncode, r.stdout, r.stderr) == (0, f'{name}: 3 images of vae, decoded from noise, seed 1\n', '')
    assert (tmp_path/'a.npy').read_bytes() == (tmp_path/'b.npy').read_bytes() and np.load(tmp_path/'a.npy').max() > 100
    line = 'train vae-light --epochs 2 --batch-size 16 --limit 64 --device cpu --out run'
    r = mnistgen(line)
    assert r.returncode == 0 and 'vae-light.safetensors: 2 epochs' in r.stdout
    (tmp_path/'run/vae-light.safetensors').rename(tmp_path/'first.safetensors')
    r = mnistgen(f'{line} --resume')                                # complete, but its weights are gone: they are written again
    (before, h), (after, k) = [load_checkpoint(tmp_path/f) for f in ('first.safetensors', 'run/vae-light.safetensors')]      # (files may differ: safetensors writes the two parts of its metadata in any order)
    assert r.returncode == 0 and h == k and before.keys() == after.keys() and all(before[n].equal(after[n]) for n in before)
    assert read_header(tmp_path/'first.safetensors')['scale'] > 0 and (tmp_path/'run/vae-light-epoch-001.safetensors').exists()
    assert mnistgen('sample first.safetensors --n 2 --out c.png').returncode == 0

def test_missing_weights_are_named(mnistgen, tmp_path, env):
    "An installation that lost its weights says so, in list and in sample."
    script = f'''
import sys, mnistgen.zoo.models as zoo, mnistgen.zoo.cli as cli
from pathlib import Path
zoo.WEIGHTS = Path({str(tmp_path)!r})
cli.WEIGHTS = zoo.WEIGHTS
print(cli.main(["list", "--names"]), cli.main(["sample", "ddpm", "--out", "x.png"]))'''
    r = subprocess.run([sys.executable, '-c', script], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert r.stdout.split() == ['2', '2'] and r.stderr.count('\n') == 2
    assert 'no bundled weights' in r.stderr.splitlines()[0] and 'ddpm.safetensors is missing' in r.stderr.splitlines()[1]

def test_without_a_compiler_there_is_the_plain_way(mnistgen, tmp_path):
    "It says so in one line, and draws what --plain draws."
    nothing = dict(PATH=str(tmp_path), CXX='')
    a = mnistgen('sample ddpm --n 2 --steps 3 --out a.npy', **nothing)
    b = mnistgen('sample ddpm --n 2 --steps 3 --plain --out b.npy', **nothing)
    assert a.returncode == b.returncode == 0 and a.stderr == 'no C++ compiler (g++) is installed: sampling takes the slower, plain way\n' and b.stderr == ''
    assert (tmp_path/'a.npy').read_bytes() == (tmp_path/'b.npy').read_bytes()
    r = mnistgen('train ddpm --epochs 1 --batch-size 8 --limit 16 --device cpu --out run', **nothing)
    assert r.returncode == 0 and r.stderr == 'no C++ compiler (g++) is installed: training takes the slower, plain way\n'

def test_help_names_every_option(mnistgen):
    assert mnistgen('--help').returncode == 0
    for command, options in (('sample', 'n labels sampler steps eta w seed out device autoencoder'), ('train', 'budget epochs batch-size resume out device autoencoder'), ('list', 'names')):
        r = mnistgen(f'{command} --help')
        assert r.returncode == 0 and all(f'--{o}' in r.stdout for o in options.split())

# ---- training

LINE = 'train ddpm --epochs 2 --batch-size 32 --limit 128 --plain --device cpu'

@pytest.fixture(scope='module')
def undisturbed(env, tmp_path_factory):
    "A short run, and the files it leaves."
    tmp = tmp_path_factory.mktemp('train')
    r = subprocess.run([exe, *LINE.split(), '--out', 'run'], cwd=tmp, env=env, capture_output=True, text=True, timeout=900)
    assert r.returncode == 0, r.stderr
    return tmp/'run', r

def test_all_models_are_trained_with_the_arguments_given(monkeypatch, capsys):
    "What came of one is not handed on to the next."
    seen = []
    def train_model(name, budget, epochs, minutes, *rest, **more):
        seen.append((name, epochs, minutes))
        return dict(history=[dict(epoch=3, train_loss=1., eval_loss=1.)])
    monkeypatch.setattr(cli, 'train_model', train_model); monkeypatch.setattr(cli, 'read_header', lambda path: dict(epochs=3)); monkeypatch.setattr(cli, 'autoencoder_of', lambda *a: None)
    for argv, want in (([], (None, None)), (['--minutes', '2'], (None, 2.)), (['--epochs', '5'], (5, None))):
        seen.clear()
        assert main(['train', 'all', *argv]) == 0 and seen == [(name, *want) for name in cli.MODELS]

def test_training_leaves_weights_record_and_stages(undisturbed, mnistgen):
    out, r = undisturbed
    assert r.stdout.count('ddpm  epoch ') == 2 and 'ddpm.safetensors: 2 epochs, train loss' in r.stdout
    assert {p.name for p in out.iterdir()} == {'ddpm.safetensors', 'ddpm.json', 'state.safetensors', *(f'ddpm-epoch-00{e}{s}.png' for e in (1, 2) for s in ('', '-raw'))}
    record = json.loads((out/'ddpm.json').read_text())
    assert [h['epoch'] for h in record['history']] == [1, 2] and record['history'][-1]['step'] == 8
    assert {'device', 'torch', 'python', 'commit', 'recipe', 'parameters', 'precision'} <= record.keys() and record['data']['images'] == 128
    r = mnistgen(f'sample {out/"ddpm.safetensors"} --n 2 --steps 3 --out x.npy')
    assert r.returncode == 0
    assert mnistgen(f'{LINE} --out {out}').returncode == 2                          # a run is not overwritten
    assert mnistgen(f'{LINE.replace("--epochs 2", "--epochs 4")} --resume --out {out}').returncode == 2   # nor continued as another

# ---- latents: whose they are

@pytest.fixture(scope='module', params=['ldm', 'ldm-fast'])
def latent(request, tmp_path_factory):
    "Two autoencoders of one step each, and a diffusion model of the first one's latents."
    tmp = tmp_path_factory.mktemp('latent')
    for seed in (0, 1): assert main(f'train vae-light --epochs 1 --batch-size 64 --limit 64 --seed {seed} --device cpu --plain --out {tmp}/vae{seed}'.split()) == 0
    mine, other = [tmp/f'vae{seed}/vae-light.safetensors' for seed in (0, 1)]
    before = mine.read_bytes()
    assert main(f'train {request.param} --epochs 1 --batch-size 32 --limit 64 --device cpu --plain --autoencoder {mine} --out {tmp}/run'.split()) == 0
    assert mine.read_bytes() == before                               # the autoencoder is not touched
    return tmp/f'run/{request.param}.safetensors', mine, other

def test_a_latent_model_samples_with_its_own_autoencoder(latent, tmp_path, capsys):
    weights, mine, _ = latent
    for name in ('a.npy', 'b.npy'): assert main(f'sample {weights} --autoencoder {mine} --n 3 --steps 4 --out {tmp_path/name}'.split()) == 0
    assert np.load(tmp_path/'a.npy').shape == (3, 28, 28) and (tmp_path/'a.npy').read_bytes() == (tmp_path/'b.npy').read_bytes()
    record = json.loads(weights.with_suffix('.json').read_text())
    assert record['autoencoder'] == dict(name='vae-light', checksum=cli.read_header(mine)['checksum'], scale=cli.read_header(mine)['scale'])

def test_with_another_autoencoder_it_is_refused(latent, tmp_path, monkeypatch, capsys):
    "In one line, before any work: by sample, evaluate, and by a training that would go on."
    weights, mine, other = latent
    monkeypatch.chdir(tmp_path)
    lines = {f'sample {weights} --autoencoder {other} --out x.png': 'another autoencoder', f'evaluate {weights} --n 4 --autoencoder {other}': 'another autoencoder', f'sample {weights} --autoencoder ddpm --out x.png': 'not an autoencoder',
             f'train {weights.stem} --epochs 1 --batch-size 32 --limit 64 --device cpu --plain --resume --autoencoder {other} --out {weights.parent}': 'was started with autoencoder',
             f'train {weights.stem} --epochs 1 --batch-size 32 --limit 64 --device cpu --plain --start {weights} --autoencoder {other} --out new': 'another autoencoder', f'sample {mine} --autoencoder {mine} --out x.png': 'does not work in latents'}
    for line, words in lines.items():
        assert main(line.split()) == 2, line
        out, err = capsys.readouterr()
        assert out == '' and err.count('\n') == 1 and words in err, err
    assert list(tmp_path.iterdir()) == []

def test_a_missing_autoencoder_is_named_before_any_work(latent, tmp_path, monkeypatch, capsys):
    import mnistgen.zoo.models as zoo
    monkeypatch.setattr(zoo, 'WEIGHTS', tmp_path); monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, 'train_model', lambda *a, **k: pytest.fail('trained'))
    for line, missing in ((f'train {latent[0].stem}', 'vae'), ('train all', 'vae'), (f'sample {latent[0]} --out x.png', 'vae-light')):
        assert main(line.split()) == 2
        out, err = capsys.readouterr()
        assert out == '' and err.count('\n') == 1 and f"the model '{'ldm' if 'all' in line else latent[0].stem}' needs an autoencoder" in err and f'{missing}.safetensors is missing' in err, err
    assert list(tmp_path.iterdir()) == []
