"Attributes: what is asked for by Python and by command line, what is refused, closed forms of guidance with several kinds, training that is resumed."
import json

import numpy as np
import pytest, torch
from torch import nn
from conftest import stopped_at
import mnistgen
from mnistgen.beyond.attributes import KINDS, MEASURES, AttributeMLP, AttributeUNet, Composed, attribute_labels, measure, ranks
from mnistgen.cfg import Guided
from mnistgen.ddpm import DDPM
from mnistgen.lab.data import Pixels, load_images, make_rng
from mnistgen.lab.engine import freeze
from mnistgen.lab.options import Sampling, refusal
from mnistgen.lab.store import load_checkpoint
from mnistgen.zoo.cli import main
from mnistgen.zoo.generator import Generator, epochs_of
from mnistgen.zoo.models import MODELS, add_model, weights_of
from mnistgen.lab.training import Recipe

class Table(nn.Module):
    "A toy whose answer for x0 is a number made of what it is told, so that guidance has a closed form."
    labels, describe, config = KINDS, staticmethod(attribute_labels), {}

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([.01, .0001, .0002, .0004]))

    def forward(self, x, t, label=None):
        if label is None: label = torch.full((len(x), 4), -1)
        said = (torch.where(label < 0, 0, label)*self.weight).sum(1)
        return said.view(-1, 1, 1, 1).expand(x.shape)

@pytest.fixture(scope='module')
def toy():
    process = DDPM(predict='x0', clip=False)
    return Generator(Table(), process, Pixels(), Sampling('ddim', 2, eta=0., w=1.), dict(model='toy'), plain=True)

def value(g, **kw): return g.sample(n=1, decoded=False, **kw)[0, 0, 0, 0].item()

# ---- what is said

def test_options_say_the_columns_of_a_label(toy):
    plan = toy.plan(4, [7, 2], thickness=.9, width=0)
    assert plan.labels.tolist() == [[7, 900, -1, 0], [2, 900, -1, 0]]*2 and plan.digits.tolist() == [7, 2, 7, 2]
    assert 'thickness = 0.9, width = 0' in str(plan)
    assert toy.plan(2, slant=.25).labels.tolist() == [[-1, -1, 250, -1]]*2
    assert toy.plan(2, [[3, 1, 2, 4]], slant=.5).labels.tolist() == [[3, 1, 500, 4]]*2
    assert toy.plan(2).labels is None and toy.plan(2, 7).labels.tolist() == [[7, -1, -1, -1]]*2

def test_what_is_asked_for_arrives_at_the_network(toy):
    assert abs(value(toy, labels=7, thickness=.9) - (.07 + .09)) < 1e-6
    assert abs(value(toy, slant=.5) - .1) < 1e-6
    assert abs(value(toy, labels=7, thickness=.9, w=3.) - 3*.16) < 1e-5          # guided away from nothing said

def test_a_negative_class_says_nothing_of_the_attributes(toy):
    "u = the answer for a 9 alone; c = a 4 of thickness 0.5."
    c, u = .04 + .05, .09
    assert abs(value(toy, labels=4, thickness=.5, w=3., negative=9) - (u + 3*(c - u))) < 1e-5

def test_two_classes_add_their_pushes():
    net, x, t = Table(), torch.zeros(2, 1, 4, 4), torch.zeros(2)
    with torch.no_grad(): assert (Composed(net, (4, 9), 2.)(x, t) - 2*(.04 + .09)).abs().max() < 1e-6
    assert 'rows of 4 numbers' in refusal(Composed, net, 'ab')

@pytest.mark.parametrize('kw, words', [
    (dict(thickness=1.5), 'thickness 1.5: choose a number from 0 to 1'), (dict(slant='steep'), 'slant steep'),
    (dict(width=float('nan')), 'width nan'), (dict(labels=11), 'choose digits from 0 to 9'), (dict(labels=[[7, 2000, 0, 0]]), 'thickness'),
    (dict(labels=[[7, 2]]), 'rows of 4 numbers: digit, thickness, slant, width')])
def test_what_makes_no_sense_is_refused_in_a_line(toy, kw, words):
    said = refusal(toy.plan, 4, **kw)
    assert words in said and '\n' not in said

def test_models_that_cannot_be_told_say_so(tmp_path, capsys):
    for model in ('cfg-fast', 'ldm-fast'):
        flags = ['--labels', '7'] if model == 'cfg-fast' else []
        assert main(['sample', model, *flags, '--thickness', '0.5', '--out', f'{tmp_path}/a.npy']) == 2
        said = capsys.readouterr().err
        assert f"'{model}' cannot be told thickness: leave it out" in said and said.count('\n') == 1
        assert not (tmp_path/'a.npy').exists()

# ---- measures

@pytest.mark.parametrize('d', [2, 7])
def test_sheared_and_thickened_digits_measure_so(d):
    "A shear by an angle adds to the slant (in tangents); dilation thickens; both leave the others nearly alone."
    images = load_images(split='test')
    x = images.pixels[images.labels == d][:200].float()[:, None]/255
    thick, slanted, wide = measure(x).T
    s = .25
    grid = nn.functional.affine_grid(torch.tensor([[[1, s, 0], [0, 1, 0]]]).expand(len(x), 2, 3), x.shape, align_corners=False)
    sheared = measure(nn.functional.grid_sample(x, grid, align_corners=False)).T
    tan = lambda a: torch.deg2rad(a).tan()
    assert (tan(sheared[1]) - tan(slanted) - s).abs().median() < .01
    assert (sheared[2]/wide - 1).abs().median() < .03
    bold = measure(nn.functional.max_pool2d(x, 3, 1, 1)).T
    assert 1.5 < (bold[0] - thick).median() < 2.5 and (bold[1] - slanted).abs().median() < 3    # a pixel on each side

def test_ranks_of_test_digits_are_even():
    "The test set is of the same kind as the training set: Kolmogorov-Smirnov, 10,000 ranks of three attributes."
    from scipy.stats import kstest
    images = load_images(split='test')
    found = ranks(images.pixels, images.labels)
    for i in range(3): assert kstest(found[:, i].numpy(), 'uniform').statistic < .05

# ---- networks

@pytest.mark.parametrize('make', [lambda: AttributeMLP(width=64, blocks=1), lambda: AttributeUNet(channels=(32, 64), pad_to=8, in_channels=2, out_channels=2)])
def test_the_engine_answers_as_the_network_does(make):
    torch.manual_seed(0)
    net = make().eval()
    x, t = torch.randn(5, 2, 4, 4), torch.rand(5)*1000
    label = torch.tensor([[7, 900, -1, 0], [-1]*4, [0, 0, 0, 0], [9, 1000, 1000, 1000], [3, -1, 500, -1]])
    with torch.no_grad():
        want, got = net(x, t, label), freeze(net)(x, t, label)
    assert (got - want).abs().max() < .03*want.abs().max()
    for i in range(5):
        with torch.no_grad(): assert (net(x[i:i + 1], t[i:i + 1], label[i:i + 1]) - want[i]).abs().max() < 1e-5

@pytest.fixture(scope='module')
def small():
    recipe = Recipe(epochs=3, batch_size=100, lr=1e-3, warmup=5)
    add_model('attributes-toy', 'nowhere', network=dict(width=32, blocks=1), net=AttributeMLP, space=MODELS['attributes-fast'].space,
              autoencoder='vae', sampling=Sampling('ddim', 3, eta=0., w=1.), recipes=dict(quick=recipe))
    yield
    del MODELS['attributes-toy']

LINE = 'train attributes-toy --limit 1000 --device cpu --plain'

def test_training_that_was_stopped_goes_on_to_the_same_weights(small, tmp_path):
    assert main(f'{LINE} --out {tmp_path}/whole'.split()) == 0
    with stopped_at(13): assert main(f'{LINE} --out {tmp_path}/parts'.split()) == 130
    assert main(f'{LINE} --out {tmp_path}/parts --resume'.split()) == 0
    a, b = [load_checkpoint(tmp_path/run/'attributes-toy.safetensors')[0] for run in ('whole', 'parts')]
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)
    # drawn and judged by whole command lines
    file = tmp_path/'whole'/'attributes-toy.safetensors'
    assert main(f'sample {file} --labels 7 --n 4 --thickness 0.9 --slant 0.2 --out {tmp_path}/a.npy'.split()) == 0
    assert main(f'sample {file} --labels 7 --n 4 --thickness 0.1 --slant 0.2 --out {tmp_path}/b.npy'.split()) == 0
    assert (np.load(tmp_path/'a.npy') != np.load(tmp_path/'b.npy')).any()
    assert main(f'evaluate {file} --n 20 --thickness 0.9 --json'.split()) == 0

def test_the_unet_begins_as_the_flow_without_conditions(tmp_path):
    "A few steps of training leave it near the loss of `rf-latent`, from which its epochs are counted on."
    assert main(f'train cfg-attributes --epochs 1 --limit 512 --device cpu --out {tmp_path}'.split()) == 0
    header = load_checkpoint(tmp_path/'cfg-attributes.safetensors')[1]
    before = load_checkpoint(weights_of('rf-latent'))[1]
    assert header['start'] == dict(checksum=before['checksum'], epochs=before['epochs'], eval_loss=before['eval_loss'])
    assert epochs_of(header) == before['epochs'] + 1
    begun = mnistgen.load(tmp_path/'cfg-attributes.safetensors', 'cpu').net.state_dict()
    kept = mnistgen.load('rf-latent', 'cpu').net.state_dict()
    assert all(begun[k].shape == v.shape for k, v in kept.items())
    far = sum((begun[k] - v).square().sum() for k, v in kept.items())/sum(v.square().sum() for v in kept.values())
    assert 0 < far < .1
