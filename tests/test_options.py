"An option is declared in one place and found in all of them: Python, the command line, the words under a figure."
import json, re, subprocess, sys

import pytest, torch
from conftest import copy_tree, root
import mnistgen
from mnistgen.lab.options import SAMPLERS, Sampling, options_of, refusal, sampler_options, switch
from mnistgen.zoo.cli import main
from mnistgen.zoo.models import MODELS

def cell(kind, text):
    return dict(cell_type=kind, id=f'{abs(hash(text)) % 16**8:08x}', metadata={}, source=text, **(dict(execution_count=None, outputs=[]) if kind == 'code' else {}))

@pytest.fixture(scope='module')
def copy(run, tmp_path_factory):
    "The tree with one notebook more, which holds the sampler that CONTRIBUTING.md shows."
    copy = copy_tree(tmp_path_factory.mktemp('sampler')/'copy')
    section = (root/'CONTRIBUTING.md').read_text(encoding='utf-8').split('## Add a sampler')[1].split('\n## ')[0]
    code = re.findall(r'^```python\n(.*?)^```', section, re.M | re.S)
    assert len(code) == 2 and '@sampler' in code[1]
    notebook = dict(cells=[cell('markdown', '# Churn\n\n> Noise exchanged'), cell('code', '#| default_exp churn'), *(cell('code', c) for c in code)],
                    metadata=dict(kernelspec=dict(display_name='python3', language='python', name='python3')), nbformat=4, nbformat_minor=5)
    before = {p: p.read_bytes() for p in (copy/'mnistgen').rglob('*.py')}
    (copy/'nbs/09_churn.ipynb').write_text(json.dumps(notebook), encoding='utf-8')
    run('-c', 'from nbdev.doclinks import nbdev_export; import sys; sys.argv = ["nbdev_export"]; nbdev_export()', cwd=copy, PYTHONPATH=str(copy))
    changed = {p.name for p in (copy/'mnistgen').rglob('*.py') if before.get(p) != p.read_bytes()}
    assert changed == {'churn.py', '_modidx.py'}                     # no other file knows of it
    return copy

def test_a_sampler_in_a_new_notebook_is_found_by_python(copy, run):
    script = '''
import mnistgen
g = mnistgen.load('ddpm', 'cpu')
plan = g.plan(2, sampler='churn', steps=3, churn=.3)
print(mnistgen.__file__, plan.sampling, g.plan(sampler='churn').sampling, sep='\\n')
a, b, c = [g.sample(2, sampler='churn', steps=3, churn=x) for x in (0., .3, .3)]
print(a.equal(g.sample(2, sampler='ddim', steps=3, eta=0.)), b.equal(c), a.equal(b))
try: g.sample(2, sampler='churn', churn=2)
except ValueError as e: print(e)
try: g.sample(2, churn=.5)
except ValueError as e: print(e)
'''
    where, *said = run('-c', script, cwd=copy, PYTHONPATH=str(copy)).stdout.splitlines()
    assert where.startswith(str(copy))
    assert said == ['CHURN-3, γ = 0.3', 'CHURN-50', 'True True False', 'churn 2: choose a number from 0 to 1', "churn belongs to the sampler churn, not to 'ddim'"]

def test_and_by_the_command_line(copy, run, tmp_path):
    call = lambda *argv, ok=True: run('-m', 'mnistgen.zoo.cli', *argv, cwd=tmp_path, PYTHONPATH=str(copy), ok=ok)
    for command in ('sample', 'evaluate'):
        text = ' '.join(call(command, '--help').stdout.split())
        assert '--churn' in text and 'share of the noise that is drawn anew in each step (a number from 0 to 1; of churn)' in text
    r = call('sample', 'ddpm', '--n', 2, '--sampler', 'churn', '--steps', 3, '--churn', 0.3, '--seed', 4, '--out', 'x.png')
    assert r.stdout == 'x.png: 2 images of ddpm, CHURN-3, γ = 0.3, seed 4\n' and (tmp_path/'x.png').stat().st_size > 100
    r = call('sample', 'ddpm', '--sampler', 'churn', '--churn', 'much', '--out', 'y.png', ok=False)
    assert (r.returncode, r.stderr) == (2, 'mnistgen: churn much: choose a number from 0 to 1\n')

# ---- what there is

@pytest.mark.parametrize('name', sampler_options())
def test_every_option_has_help_and_refuses_nonsense(name):
    "The comment beside it is its help; nothing that is no value of its kind is accepted."
    option = sampler_options()[name]
    assert len(option.help) > 10
    truth = () if isinstance(option.reader, switch) else (True,)
    for bad in (*truth, float('nan'), object(), 'nonsense', [1.]): assert 'choose' in refusal(option.reader.check, name, bad)

@pytest.mark.parametrize('command', ['sample', 'evaluate'])
def test_every_option_is_a_flag_with_its_help(command, capsys):
    with pytest.raises(SystemExit): main([command, '--help'])
    text = ' '.join(capsys.readouterr().out.split())
    for name, option in sampler_options().items():
        assert f'--{name.replace("_", "-")}' in text and ' '.join(option.help.split()) in text

@pytest.mark.parametrize('name', SAMPLERS)
def test_every_sampler_draws_with_its_defaults_and_says_so(name):
    g = mnistgen.load('ddpm', 'cpu')
    f = SAMPLERS[name]
    way = dict(sampler=name, steps=None if f.adaptive else 2)
    plan = g.plan(2, **way)
    kept = plan.sampling.json()
    assert Sampling(**json.loads(json.dumps(kept))) == plan.sampling and str(plan.sampling).startswith(f.caption + '-2'*(not f.adaptive))
    images = g.sample(2, **way)
    assert images.shape == (2, 1, 28, 28) and images.isfinite().all() and 0 <= images.min() <= images.max() <= 1
    options = {k: o.default for k, o in options_of(SAMPLERS[name]).items() if o.default is not None}
    assert g.sample(2, **way, **g.sampling.options | options if name == g.sampling.sampler else options).isfinite().all()

def test_no_generic_layer_names_a_sampler():
    "Only a chapter, and the list of models, say 'ddim'."
    for module in ('zoo/generator', 'zoo/train', 'zoo/cli', 'zoo/evaluation', 'lab/options', 'lab/plotting', 'lab/training'):
        text = (root/f'mnistgen/{module}.py').read_text(encoding='utf-8')
        assert not re.search(r"['\"](ddpm|ddim|euler|midpoint|heun|rk4|dpm\+\+|adaptive)['\"]", text), module

def test_stored_rows_are_ways_of_sampling():
    "Every row of every results file reads back as a Sampling, and what is left is how many and which."
    seen = 0
    for file in sorted((root/'results').glob('*-evaluation.json')):
        for row in json.loads(file.read_text(encoding='utf-8')).get('rows', []):
            way = {k: v for k, v in row['way'].items() if k not in ('n', 'seed', 'start')}
            assert Sampling(**way).json() == way and str(Sampling(**way)).startswith(SAMPLERS[way['sampler']].caption)
            seen += 1
    assert seen > 50
    for model in MODELS.values():
        if model.sampling: assert Sampling(**model.sampling.json()) == model.sampling
