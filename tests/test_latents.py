"The experiments with latents: their networks, settings and stored rows. Their numbers are in results/."
import json, math, subprocess, sys

import pytest, torch
from conftest import root

sys.path.insert(0, str(root/'benchmarks'))
import autoencoders, latents

@pytest.mark.parametrize('name', latents.VARIANTS)
def test_a_network_takes_latents(name):
    torch.manual_seed(0)
    net = latents.network(latents.VARIANTS[name]['net'], latents.VARIANTS[name]['network'])
    x = torch.randn(3, 2, 4, 4)
    answer = net(x, torch.tensor([0, 500, 999]))
    assert answer.shape == x.shape and answer.isfinite().all()
    parameters = sum(p.numel() for p in net.parameters())
    assert .95 < parameters/2_794_434 < 1.05                         # about as many as the padded UNet

def test_drawn_latents_are_of_their_posterior():
    "Other draws in each epoch, around the mode, as far from it as the posterior says."
    mean = torch.arange(4.).view(4, 1, 1, 1).expand(4, 2, 4, 4).contiguous()
    logvar = torch.full((4, 2, 4, 4), -2.)
    batches = latents.drawn_batches(mean, logvar, 4, seed=0)
    draws = torch.stack([x - mean[batches.order(e)] for e in range(400) for x, _ in batches.epoch(e)])
    assert not draws[0].equal(draws[1])
    assert draws.mean().abs() < .01 and abs(draws.std().item() - math.exp(-1)) < .01

BAD = [([], 'choose --failures'), (['--failures', 'nobody'], 'unknown: nobody'),
       (['--variants', 'latents × 4'], 'unknown')]

@pytest.mark.parametrize('argv, words', BAD)
def test_bad_arguments(argv, words):
    command = [sys.executable, str(root/'benchmarks/latents.py'), *argv]
    r = subprocess.run(command, capture_output=True, text=True)
    assert r.returncode == 2 and words in r.stderr.splitlines()[-1] and not r.stdout

def rows(file): return latents.rows_of(root/f'results/{file}.json')

STARTS = {name: way.json() for name, way in latents.STARTS.items()}
FILES = {'ldm-failures': latents.FAILURES, 'ldm-starts': STARTS, 'ldm-variants': latents.VARIANTS}
ROWS = [(r, settings[r['name']]) for file, settings in FILES.items() for r in rows(file)]

def grids(row):
    "The names of the files of pictures in a row, wherever in it."
    inside = [g for v in row.values() if isinstance(v, dict) for g in grids(v)]
    return [v for k, v in row.items() if k == 'grid'] + inside

@pytest.mark.parametrize('row, setting', ROWS)
def test_rows_are_of_these_settings(row, setting):
    assert row['setting'] == json.loads(json.dumps(setting)), row['name']
    assert grids(row) and all((root/'results'/g).is_file() for g in grids(row))

@pytest.mark.parametrize('row', rows('ldm-starts'))
def test_rows_of_the_starts_are_of_this_process(row):
    "The first step, and what it makes of an error, are computed as they were."
    from mnistgen.ddpm import DDPM
    process, way = DDPM(clip=False), latents.STARTS[row['name']]
    assert row['way'] == way.json()
    times = process.path(way.steps, way.options.get('spacing', 'leading'))
    assert list(times[0]) == row['first'] and [s for _, s in times] == row['path']['t']
    assert math.isclose(latents.growth(process, *times[0]), row['growth'], rel_tol=1e-9)

@pytest.mark.parametrize('kind, predict, times', [('quick', 'v', 'logit-normal'),
                                                  ('report', 'eps', 'uniform')])
def test_the_recipes_of_the_failures_differ_in_what_they_say(kind, predict, times):
    "Asked for v or for ε; as many images at once, the same optimiser, nothing clipped."
    from mnistgen.ddpm import DDPM
    from mnistgen.zoo.models import MODELS
    recipe = MODELS[latents.RECIPES[kind]].recipes[kind]
    config = DDPM(**recipe.process).config
    assert (config['predict'], config['times'], config['clip']) == (predict, times, False)
    assert (recipe.batch_size, recipe.optimizer, recipe.ema) == (512, 'adamw', .995)

def test_samples_are_drawn_in_the_latents_of_a_generator():
    "By the sampling that is given, undecoded, in the generator's own order."
    from mnistgen.ddpm import DDPM
    from mnistgen.ldm import MLP, Latents
    from mnistgen.vae import VAE, Autoencoder
    from mnistgen.zoo.generator import Generator
    torch.manual_seed(0)
    small = VAE(channels=(16, 16), fold=2, middle=False, groups=16)
    space = Latents(Autoencoder(small, plain=True), 1.)
    net, own = MLP(width=32, blocks=1, time=8), latents.Sampling('ddim', 2, eta=1.)
    g = Generator(net, DDPM(clip=False), space, own, plain=True)
    for sampling in (None, latents.Sampling('ddpm', 3)):
        z = latents.drawn_samples(g, 3, sampling)
        assert z.shape == (3, 2, 4, 4)
        assert g.space.decode(z).equal(g.sample(3, **(sampling or own).json()))

def test_a_weight_of_the_nats_is_a_model_of_its_own():
    "The rows of --betas are trained by these recipes; the list of models stays as it is."
    from mnistgen.zoo.models import MODELS
    before = dict(MODELS)
    settings = [dict(beta=r['beta'], anneal=r['anneal']) for r in rows('vae-betas')]
    assert settings == autoencoders.BETAS
    with autoencoders.variant(dict(beta=.1, anneal=.5), epochs=2) as name:
        model = MODELS[name]
        recipe = model.recipes['quick']
        assert (recipe.epochs, recipe.process) == (2, dict(beta=.1, anneal=.5))
        assert model.network == before['vae-light'].network
        assert MODELS['vae-light'] is before['vae-light']
    assert MODELS == before
