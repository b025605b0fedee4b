"A conditional model in the zoo: from a registered name to digits that are asked for, by Python and by command line."
import json

import numpy as np
import pytest, torch
from torch import nn
from conftest import stopped_at
import mnistgen
from mnistgen.lab.data import Pixels, load_images
from mnistgen.lab.options import Sampling, refusal
from mnistgen.lab.store import load_checkpoint
from mnistgen.lab.training import Recipe
from mnistgen.zoo.cli import main
from mnistgen.zoo.models import MODELS, add_model

class Average(nn.Module):
    "Knows an image for each digit, and one more for when nothing is said; asked for x0, it learns their means."
    labels = {'digit': 10}
    config = {}

    def __init__(self):
        super().__init__()
        self.images = nn.Embedding(11, 784)                          # -1 is the last row

    def forward(self, x, t, label=None):
        if label is None: label = torch.full((len(x),), -1, device=x.device)
        return self.images(label % 11).view(-1, 1, 28, 28)

@pytest.fixture(scope='module', autouse=True)
def toy():
    recipe = Recipe(epochs=4, batch_size=50, lr=.2, ema=.9, process=dict(predict='x0'), drop_labels=.3)
    add_model('toy', 'nowhere', network={}, net=Average, sampling=Sampling('ddim', 5), recipes=dict(quick=recipe))
    yield
    del MODELS['toy']

LINE = 'train toy --limit 2000 --device cpu --plain'

@pytest.fixture(scope='module')
def trained(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp('toy')
    assert main(f'{LINE} --out {folder}/run'.split()) == 0
    return folder/'run'/'toy.safetensors'

def test_it_learns_each_digit_and_what_to_draw_when_nothing_is_said(trained):
    "The means of the classes, within what the last steps leave; the last row is the mean of all: its share of labels was left out."
    g, data = mnistgen.load(trained, 'cpu'), load_images()
    x, y = Pixels.encode(data.pixels[:2000]), data.labels[:2000]
    assert g.labels == {'digit': 10}
    for d in range(10): assert (g.sample(1, labels=d)[0] - Pixels.decode(x[y == d].mean(0))).square().mean() < .01
    assert (g.sample(1)[0] - Pixels.decode(x.mean(0))).square().mean() < .01

def test_labels_are_taken_in_turn(trained):
    g = mnistgen.load(trained, 'cpu')
    one = torch.cat([g.sample(1, labels=d) for d in (0, 1, 2)])
    assert g.plan(6, labels=[0, 1, 2]).labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert (g.sample(6, labels=[0, 1, 2], batch_size=4) - one.repeat(2, 1, 1, 1)).abs().max() < 1e-5
    for bad, words in (([0, 1, 2, 3], '4 labels for 6'), (10, '0 to 9'), (1.5, 'labels'), ('7', 'labels')): assert words in refusal(g.plan, 6, labels=bad)

def test_the_command_line_draws_and_judges_what_is_asked_for(trained, tmp_path, capsys):
    assert main(f'sample {trained} --labels 0,1,2 --n 6 --out {tmp_path}/a.npy'.split()) == 0
    a = np.load(tmp_path/'a.npy')
    assert (a[:3] == a[3:]).all() and not (a[0] == a[1]).all()
    assert main(f'sample {trained} --labels 0,1,2,3 --n 6 --out {tmp_path}/b.npy'.split()) == 2
    assert '4 labels for 6' in capsys.readouterr().err and not (tmp_path/'b.npy').exists()
    assert main(f'evaluate {trained} --n 20 --labels 3 --json'.split()) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores['sampler'] == 'ddim' and sum(map(sum, scores['confusion'])) == 20 and sum(scores['confusion'][3]) == 20
    assert main(f'evaluate {trained} --n 20 --json'.split()) == 0    # nothing asked for: digits at random
    assert sum(map(sum, json.loads(capsys.readouterr().out)['confusion'])) == 20

def test_stages_show_the_digits_in_turn(trained):
    g = mnistgen.load(trained, 'cpu')
    assert g.preview().shape == (16, 1, 28, 28) and (g.preview()[0] - g.preview()[10]).abs().max() < 1e-5

def test_it_resumes_to_the_same_weights(trained, tmp_path):
    "The labels that are left out are decided by epoch and item, so a run in two parts leaves out the same ones."
    with stopped_at(70):                                             # in the second of four epochs of forty steps
        assert main(f'{LINE} --out {tmp_path}/run'.split()) == 130
    assert main(f'{LINE} --resume --out {tmp_path}/run'.split()) == 0
    (a, _), (b, _) = load_checkpoint(trained), load_checkpoint(tmp_path/'run'/'toy.safetensors')
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)
    (a, h), (b, k) = [load_checkpoint(f/'state.safetensors') for f in (trained.parent, tmp_path/'run')]
    assert all(a[n].equal(b[n]) for n in a) and [e['train_loss'] for e in h['history']] == [e['train_loss'] for e in k['history']]
