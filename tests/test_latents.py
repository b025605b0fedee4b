"The experiments with latents: their networks take what they are given, their rows are of the settings that are written down. Their numbers are in results/."
import json, subprocess, sys

import pytest, torch
from conftest import root

sys.path.insert(0, str(root/'benchmarks'))
import latents

@pytest.mark.parametrize('name', latents.VARIANTS)
def test_a_network_takes_latents(name):
    torch.manual_seed(0)
    net, x, t = latents.network(latents.VARIANTS[name]['net'], latents.VARIANTS[name]['network']), torch.randn(3, 2, 4, 4), torch.tensor([0, 500, 999])
    assert net(x, t).shape == x.shape and net(x, t).isfinite().all()
    assert .95 < sum(p.numel() for p in net.parameters())/2_794_434 < 1.05       # about as many parameters

def test_drawn_latents_are_of_their_posterior():
    "Other draws in each epoch, around the mode, as far from it as the posterior says."
    mean, logvar = torch.arange(4.).view(4, 1, 1, 1).expand(4, 2, 4, 4).contiguous(), torch.full((4, 2, 4, 4), -2.)
    batches = latents.drawn_batches(mean, logvar, 4, seed=0)
    draws = torch.stack([x - mean[batches.order(e)] for e in range(400) for x, _ in batches.epoch(e)])
    assert not draws[0].equal(draws[1]) and draws.mean().abs() < .01 and abs(draws.std().item() - 2.718281828**-1) < .01

@pytest.mark.parametrize('argv, words', [([], 'choose --failures'), (['--failures', 'nobody'], 'unknown: nobody'), (['--variants', 'latents × 4'], 'unknown')])
def test_bad_arguments(argv, words):
    r = subprocess.run([sys.executable, str(root/'benchmarks/latents.py'), *argv], capture_output=True, text=True)
    assert r.returncode == 2 and words in r.stderr.splitlines()[-1] and not r.stdout

ROWS = [(r, settings[r['name']]) for file, settings in (('ldm-failures', latents.FAILURES), ('ldm-starts', latents.STARTS), ('ldm-variants', latents.VARIANTS)) for r in latents.rows_of(root/f'results/{file}.json')]

def grids(row):
    "The names of the files of pictures in a row, wherever in it."
    return [v for k, v in row.items() if k == 'grid'] + [g for v in row.values() if isinstance(v, dict) for g in grids(v)]

@pytest.mark.parametrize('row, setting', ROWS)
def test_rows_are_of_these_settings(row, setting):
    assert row['setting'] == json.loads(json.dumps(setting)), row['name']
    assert grids(row) and all((root/'results'/g).is_file() for g in grids(row))

@pytest.mark.parametrize('kind, predict, times', [('quick', 'v', 'logit-normal'), ('report', 'eps', 'uniform')])
def test_the_recipes_of_the_failures_differ_in_what_they_say(kind, predict, times):
    "Asked for v or for ε; as many images at once, the same optimiser, nothing clipped."
    from mnistgen.ddpm import DDPM
    from mnistgen.zoo.models import MODELS
    recipe = MODELS[latents.RECIPES[kind]].recipes[kind]
    process = DDPM(**recipe.process)
    assert (process.predict, process.config['times'], process.config['clip'], recipe.batch_size, recipe.optimizer, recipe.ema) == (predict, times, False, 512, 'adamw', .995)
