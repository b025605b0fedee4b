"Guided digits: whole command lines, what is refused, and conditional training that is stopped, resumed and shared between processes."
import json, subprocess, sys

import numpy as np
import pytest, torch
from conftest import stopped_at
import mnistgen
from mnistgen.cfg import ConcatUNet, CrossUNet, Guided
from mnistgen.ddpm import Noise
from mnistgen.lab.data import make_rng
from mnistgen.lab.engine import freeze
from mnistgen.lab.options import Sampling, Way, options_of, refusal
from mnistgen.lab.store import load_checkpoint
from mnistgen.zoo.cli import main
from mnistgen.zoo.evaluation import get_judge

EVERY = '--interval 200,900 --rescale 0.5 --parallel 0 --momentum -0.5 --bound 2 --renoise unguided --zero-star on --negative 3'

@pytest.fixture(scope='module')
def g(): return mnistgen.load('cfg-fast', 'cpu')

# ---- sampling

def test_digits_that_were_asked_for(tmp_path, capsys):
    line = f'sample cfg-fast --labels 0,1,2 --n 30 --w 3 --steps 50 --out {tmp_path}/a.npy'
    assert main(line.split()) == 0
    assert '30 images of cfg-fast, DDIM-50, ' in (said := capsys.readouterr().out) and 'w = 3' in said
    images = np.load(tmp_path/'a.npy')
    seen = get_judge().assess(images).digits
    assert (seen == torch.tensor([0, 1, 2]*10)).float().mean() > .95
    assert main(line.replace('a.npy', 'b.npy').split()) == 0
    assert (tmp_path/'a.npy').read_bytes() == (tmp_path/'b.npy').read_bytes()

def test_without_a_number_there_are_as_many_as_the_labels_divide(tmp_path, capsys):
    assert main(f'sample cfg-fast --labels 0,1,2 --steps 1 --out {tmp_path}/a.npy'.split()) == 0
    assert '66 images of' in capsys.readouterr().out and np.load(tmp_path/'a.npy').shape == (66, 28, 28)

def test_every_option_of_guidance_has_a_flag_and_a_caption(tmp_path, capsys):
    assert main(f'sample cfg-fast --labels 7 --n 4 --w 9 --steps 5 {EVERY} --out {tmp_path}/a.npy'.split()) == 0
    said = capsys.readouterr().out
    for words in ('w = 9', 'interval = 200 to 900', 'rescale = 0.5', 'parallel = 0', 'momentum = -0.5', 'bound = 2', 'renoise = unguided', 'zero_star = on', 'negative = 3'):
        assert words in said, words
    # zero_init is refused where no velocity is predicted: tests/test_flows.py has it
    assert set(options_of(Guided)) == {'w', 'zero_init'} | {word[2:].replace('-', '_') for word in EVERY.split() if word.startswith('--')}

def test_evaluate_says_how_many_are_right(capsys):
    assert main('evaluate cfg-fast --n 60 --w 2 --interval 100,900 --steps 20 --json'.split()) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores['w'] == 2 and scores['interval'] == [100, 900] and scores['accuracy'] > .9

@pytest.mark.parametrize('model, flags, words', [
    ('cfg-fast', '--labels 7 --w nan', 'w nan: choose a number'),
    ('cfg-fast', '--labels 7 --w loud', 'w loud: choose a number'),
    ('cfg-fast', '--labels 10', 'from 0 to 9'),
    ('cfg-fast', '--labels 1,2,3,4 --n 30', '4 labels for 30 samples'),
    ('cfg-fast', '--labels seven', 'give digits separated by commas'),
    ('cfg-fast', '--labels 7 --interval 600,200', 'the smaller one first'),
    ('cfg-fast', '--labels 7 --interval 200,200', 'the smaller one first'),
    ('cfg-fast', '--labels 7 --interval 200', 'two numbers from 0 to 1000'),
    ('cfg-fast', '--labels 7 --negative 12', '0 to 9'),
    ('cfg-fast', '--labels 7 --zero-star maybe', 'choose on or off'),
    ('cfg-fast', '--w 3', 'w: guides towards labels, and none are given'),
    ('ldm-fast', '--w 3', 'unconditional: there is nothing to guide, leave w out'),
    ('ldm-fast', '--rescale 0.5 --interval 1,2', 'leave interval and rescale out'),
    ('ldm-fast', '--labels 3', 'unconditional: it takes no labels')])
def test_what_makes_no_sense_is_refused_in_a_line(model, flags, words, tmp_path, capsys):
    assert main(f'sample {model} {flags} --out {tmp_path}/a.npy'.split()) == 2
    said = capsys.readouterr().err
    assert words in said and said.count('\n') == 1 and not (tmp_path/'a.npy').exists()

def test_nothing_said_is_drawn_without_guidance(g):
    "No labels: one pass a step, no guidance in the caption, and the same as labels of -1."
    assert not set(g.plan(4).sampling.options) & set(options_of(Guided))
    a, b = g.sample(4, steps=5), g.sample(4, labels=-1, steps=5)
    assert (a - b).abs().max() < 1e-4

def test_the_noise_is_the_same_for_every_scale_and_label(g):
    seen = []
    class Watched(torch.nn.Module):
        labels = g.labels
        def forward(self, x, t, label=None):
            seen.append(x[:4].clone())
            return torch.zeros_like(x)
    watched = mnistgen.load('cfg-fast', 'cpu')
    watched._frozen = Watched()
    for labels, w in ((7, 3.), (1, 0.), ([0, 1], 50.), (None, None)): watched.sample(4, labels, 5, steps=1, w=w)
    expected = Noise(5, 4)(torch.empty(4, 2, 4, 4))
    assert len(seen) == 4 and all(x.equal(expected) for x in seen)

def test_no_label_is_left_out_when_sampling(g):
    "Whatever the recipe leaves out in training, each sample is told its digit: one asked for alone is that of a crowd."
    crowd = g.sample(40, labels=range(10), steps=5, w=2.)
    alone = torch.cat([g.sample(1, labels=d, first=30 + d, steps=5, w=2.) for d in range(10)])
    assert (crowd[30:] - alone).abs().max() < 1e-3

def test_ways_of_guidance_are_stored_and_read():
    way = Way(Sampling('ddim', 50, eta=0., w=3., interval=(200., 600.), zero_star=True), n=100)
    assert Way.of(json.loads(json.dumps(way.json()))) == way and len({way, Way.of(json.loads(json.dumps(way.json())))}) == 1

# ---- the engine

@pytest.mark.parametrize('net', [ConcatUNet(channels=(32, 64), pad_to=8), CrossUNet(channels=(32, 64), in_channels=2, out_channels=2, pad_to=8)], ids=['concat', 'cross'])
def test_conditional_unets_are_frozen_and_guided(net):
    net = net.eval().requires_grad_(False)
    fast, rng = freeze(net, torch.float32), make_rng('frozen')
    z, t = torch.randn(6, 2, 4, 4, generator=rng), torch.full((6,), 300)
    for label in (torch.tensor([0, 3, 9, -1, 5, 5]), None): assert (fast(z, t, label) - net(z, t, label)).abs().max() < 1e-4
    label = torch.tensor([0, 3, 9, -1, 5, 5])
    c, u = net(z, t, label), net(z, t)
    assert (Guided(fast, w=3)(z, t, label) - (u + 3*(c - u))).abs().max() < 1e-3
    assert '0 to 9' in refusal(fast, z, t, label + 5)

# ---- training

LINE = 'train cfg-fast --limit 640 --epochs 3 --batch-size 64 --device cpu --plain'

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('cfg')/'run'
    assert main(f'{LINE} --out {folder}'.split()) == 0
    return folder

def test_conditional_training_resumes_to_the_same_bits(trained, tmp_path):
    with stopped_at(17):                                             # in the second of three epochs of ten steps
        assert main(f'{LINE} --out {tmp_path}/run'.split()) == 130
    assert main(f'{LINE} --resume --out {tmp_path}/run'.split()) == 0
    (a, _), (b, _) = [load_checkpoint(f/'state.safetensors') for f in (trained, tmp_path/'run')]
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)

def test_two_processes_leave_out_the_same_labels(trained, tmp_path, env):
    "The losses of one process, to what the order of a sum leaves."
    pytest.importorskip('accelerate')
    (tmp_path/'drive.py').write_text('import os, sys\nfrom mnistgen.zoo.cli import main\ncode = main(sys.argv[1:])\nsys.stdout.flush()\nos._exit(code)\n')
    start = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', 'drive.py']
    r = subprocess.run([*start, *LINE.split(), '--out', 'run'], cwd=tmp_path, env=env | {'OMP_NUM_THREADS': '1'}, capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stderr[-3000:]
    one, two = [json.loads((f/'cfg-fast.json').read_text())['history'] for f in (trained, tmp_path/'run')]
    for a, b in zip(one, two, strict=True):
        for k in ('train_loss', 'eval_loss'): assert abs(a[k]/b[k] - 1) < 1e-5, (k, a[k], b[k])

def test_leaving_out_labels_matters(trained, tmp_path):
    "The check above can fail: other labels left out, by another seed's choice, give other losses."
    from mnistgen.lab.data import Batches
    labels_of = Batches.labels_of
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Batches, 'labels_of', lambda self, epoch: labels_of(self, epoch + 7))
        assert main(f'{LINE} --out {tmp_path}/run'.split()) == 0
    one, two = [json.loads((f/'cfg-fast.json').read_text())['history'] for f in (trained, tmp_path/'run')]
    assert abs(one[-1]['train_loss']/two[-1]['train_loss'] - 1) > 1e-4
