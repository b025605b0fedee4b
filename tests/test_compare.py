"A comparison goes on where it was killed, shared out over processes it gives the same bytes, and its command says one line for a mistake."
import json, os, re, signal, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest, torch
import mnistgen
from mnistgen.comparison import Comparison, compare, source_of
from mnistgen.lab.options import SAMPLERS, refusal
from mnistgen.zoo.cli import main
from conftest import root

LINE = 'compare rf-fast --samplers euler --steps 4,8 --n 100 --batch-size 11 --untimed --json --cache kept'.split()
TORCHRUN = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node']

# `mnistgen`, but it says which samples it draws, in log-RANK, and takes its time
DRIVER = '''
import os, sys, time
import mnistgen.zoo.cli as cli
from mnistgen.comparison import Trained
draw, rank = Trained.draw, os.environ.get('RANK', '0')
def slowly(self, way):
    with open(f'log-{rank}', 'a') as f: f.write(f'{way.sampling.steps} {way.first} {way.n}' + chr(10))
    time.sleep(float(os.environ.get('SLEEP', 0)))
    return draw(self, way)
Trained.draw = slowly
code = cli.main(sys.argv[1:])
sys.stdout.flush(); sys.stderr.flush()
os._exit(code)
'''

def drawn(folder, rank=0):
    path = folder/f'log-{rank}'
    return [tuple(map(int, l.split())) for l in path.read_text().splitlines()] if path.exists() else []

def images(folder): return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.glob('kept/**/*.npy'))}
def told(text): return [{k: v for k, v in r.items() if k != 'commit'} for r in json.loads(text)]

@pytest.fixture(scope='module')
def start(env):
    def _start(folder, processes=1, **extra):
        folder.mkdir(exist_ok=True)
        (folder/'drive.py').write_text(DRIVER)
        begin = [sys.executable] if processes == 1 else [*TORCHRUN, str(processes), '--']
        return subprocess.Popen([*begin, 'drive.py', *LINE], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                env=env | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(root)} | extra)
    return _start

def finish(p):
    out, err = p.communicate(timeout=600)
    assert p.returncode == 0, err
    return out

@pytest.fixture(scope='module')
def whole(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    return folder, finish(start(folder))

STARTS = [(steps, first, min(11, 100 - first)) for steps in (4, 8) for first in range(0, 100, 11)]

def test_a_killed_comparison_draws_only_what_is_missing(whole, start, tmp_path):
    p = start(tmp_path/'parts', SLEEP='.2')
    until = time.time() + 300
    while len(images(tmp_path/'parts')) < 4:
        assert time.time() < until and p.poll() is None
        time.sleep(.02)
    p.send_signal(signal.SIGKILL)
    p.wait()
    before = images(tmp_path/'parts')
    there = {f: (tmp_path/'parts'/f).stat().st_mtime_ns for f in before}
    assert 4 <= len(before) < len(STARTS)
    (tmp_path/'parts/log-0').unlink()
    out = finish(start(tmp_path/'parts'))
    after = images(tmp_path/'parts')
    assert {f: after[f] for f in before} == before and all((tmp_path/'parts'/f).stat().st_mtime_ns == t for f, t in there.items())
    assert drawn(tmp_path/'parts') == STARTS[len(before):]
    assert after == images(whole[0]) and len(after) == len(STARTS)
    assert told(out) == told(whole[1])

def test_finished_it_draws_nothing(whole, start):
    (whole[0]/'log-0').unlink()
    assert told(finish(start(whole[0]))) == told(whole[1]) and drawn(whole[0]) == []

def test_two_processes_give_the_bytes_of_one(whole, start, tmp_path):
    pytest.importorskip('accelerate')
    out = finish(start(tmp_path/'several', 2))
    assert images(tmp_path/'several') == images(whole[0]) and told(out) == told(whole[1])   # and one of them speaks
    shares = [drawn(tmp_path/'several', rank) for rank in (0, 1)]
    assert all(shares) and sorted(sum(shares, [])) == sorted(STARTS)
    for share in shares:                                             # each a range of indices
        starts = [first for steps, first, _ in share if steps == 4]
        assert starts == list(range(starts[0], starts[-1] + 11, 11))

def test_accelerate_launches_it(env, tmp_path, whole):
    pytest.importorskip('accelerate')
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no',
              '--multi_gpu', '--num_processes', '2', '--main_process_port', '0', '-m', 'mnistgen.zoo.cli', *LINE, '--device', 'cpu']
    p = subprocess.run(launch, cwd=tmp_path, env=env | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(root)}, capture_output=True, text=True, timeout=600)
    assert p.returncode == 0, p.stderr
    assert images(tmp_path) == images(whole[0]) and told(p.stdout) == told(whole[1])

def test_a_mistake_ends_all_processes_with_one_line(start, env, tmp_path):
    p = subprocess.run([*TORCHRUN, '2', '-m', 'mnistgen.zoo.cli', 'compare', 'gan'], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                       env=env | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(root)})
    lines = [l for l in p.stderr.splitlines() if l.startswith('mnistgen: ')]
    assert p.returncode != 0 and len(lines) == 1 and lines[0].startswith("mnistgen: unknown model 'gan'")

# ---- rows

COLUMNS = ['model', 'how', 'n', 'parameters', 'epochs', 'minutes', 'trained on', 'NFE', 'ms a digit, 1 at once', '10 at once', '1,000 at once',
           'FD', 'FD, test', 'KID · 1000', 'precision', 'recall', 'confident', 'accuracy']

def test_a_row_says_all_that_is_promised():
    t = mnistgen.compare('cfg-fast', 'ddim', steps=[2, 4], n=100, cache=None, at=(1, 10), w=2)
    assert isinstance(t, Comparison) and [r['way'] for r in t.records] == [dict(sampler='ddim', steps=s, eta=0., w=2., n=100, seed=0) for s in (2, 4)]
    for r in t.records:
        assert (r['parameters'], r['autoencoder']['parameters'], r['epochs'], r['nfe']) == (2755360, 9817349, 120, 2.*r['way']['steps'])
        assert 40 < r['minutes'] < 50 and set(r['milliseconds']) == {'1', '10'} and len(r['draws']['train']) == len(r['draws']['test']) == 5
        assert all(r[split]['FD ±'] > 0 and r['floor'][split]['FD'] > 0 for split in ('train', 'test')) and {'accuracy', 'confident'} <= r.keys()
    assert list(t.table()[0]) == [c for c in COLUMNS if c != '1,000 at once'] and json.loads(t.json()) == t.records
    markdown = t._repr_markdown_()
    assert markdown.count('real digits') == 1 and '**' in markdown and ' digits a row, seed 0, drawn on ' in markdown
    quality, cost = t.tables()
    assert len(quality) == len(t) + 1 and len(cost) == len(t) and max(len(quality[0]), len(cost[0])) <= 8
    assert all(c in repr(t) for c in [*quality[0], *cost[0]]) and {*quality[0], *cost[0]} < {*t.table()[0]}

def test_a_bar_counts_digits(capsys):
    for progress in (True, False):
        compare('rf-fast', 'euler', steps=[1, 2], n=10, cache=None, at=(), batch_size=4, progress=progress)
        err = capsys.readouterr().err
        assert ('20/20' in err and 'rf-fast, Euler-2' in err) == progress and (err == '') != progress

def test_options_go_to_those_that_have_them():
    t = compare(['rf', 'ddpm'], ['euler', 'ddim'], steps=2, n=10, cache=None, at=(), eta=.5)
    assert [r['way'].get('eta') for r in t.records] == [None, .5, None, .5]
    assert len(compare('rf-fast', ['adaptive', 'euler'], steps=[1, 2], n=10, cache=None, at=()).records) == 3   # one chooses its own steps

def test_other_noise_is_kept_elsewhere(tmp_path):
    for seed in (0, 1): compare('rf-fast', 'euler', steps=2, n=20, seed=seed, cache=tmp_path, at=())
    compare('rf-fast', 'euler', steps=2, n=20, cache=tmp_path, at=(), spacing=.6667)
    compare('rf-fast', 'euler', steps=2, n=20, cache=tmp_path, at=(), spacing=.6668)
    compare('rf-fast', 'euler', steps=2, n=20, cache=tmp_path, at=(), plain=True)
    found = sorted(tmp_path.glob('*/*/*.npy'))
    assert len(found) == 5 and len({f.read_bytes() for f in found}) == 5
    assert len({f.parent.parent for f in found}) == 2 and all(f.parent.parent.name.startswith(mnistgen.load('rf-fast').header['checksum']) for f in found)

def test_changed_weights_are_another_model(tmp_path):
    g = mnistgen.load('rf-fast', plain=True)
    a = compare(g, steps=1, n=10, cache=tmp_path, at=())
    with torch.no_grad(): g.net.out.bias.add_(.1) if hasattr(g.net, 'out') else next(g.net.parameters()).mul_(1.1)
    b = compare(g, steps=1, n=10, cache=tmp_path, at=())
    assert a[0]['weights'] == g.header['checksum'] != b[0]['weights'] and len(list(tmp_path.glob('*/*/*.npy'))) == 2

class Seeded:
    "A generator that knows nothing of indices."
    def __init__(self): self.seeds = []
    def sample(self, n, seed):
        self.seeds.append(seed)
        return np.random.RandomState(seed).rand(n, 28, 28)

def test_a_generator_without_indices_gets_a_seed_for_each_batch():
    mine = Seeded()
    r = compare(mine, n=25, cache=None, at=(), batch_size=10)[0]
    assert len(set(mine.seeds)) == 3 and r['model'] == 'Seeded' and r['nfe'] is None and r['how'] == '–'

class Asked:
    "A generator that is asked for digits, has steps, and says what it is."
    labels, parameters, name, checksum = {'digit': 10}, 7, 'from a file', 'abc'
    def sample(self, n, seed, labels, steps=3, first=0):
        assert len(labels) == n
        from mnistgen.lab.data import load_images
        test = load_images(split='test')
        return test.pixels[[(test.labels == d).nonzero()[steps, 0] for d in labels]]

def test_a_generator_that_is_asked(tmp_path):
    t = compare([Asked(), 'rf-fast'], steps=[3, 4], n=60, cache=tmp_path, at=())
    assert [r['model'] for r in t] == ['from a file']*2 + ['rf-fast']*2 and t[0]['accuracy'] > .9 and t[0]['parameters'] == 7
    assert [r['how'] for r in t][:2] == ['3 steps', '4 steps'] and len(list(tmp_path.glob('abc/*/*.npy'))) == 2

def test_an_autoencoder_is_a_row():
    r = compare('vae-light', n=50, cache=None, at=())[0]
    assert (r['parameters'], r['nfe'], r['how'], r['minutes']) == (586248, 1., '–', 20.33)

def test_it_is_exported_lazily(run):
    script = 'import sys, mnistgen; assert "mnistgen.comparison" not in sys.modules and "compare" in dir(mnistgen); print(mnistgen.compare.__module__)'
    assert run('-c', script).stdout.strip() == 'mnistgen.comparison'

# ---- its plans

def test_stored_rows_are_not_measured_again(run):
    "All of a plan that is stored: nothing is drawn, and the file stays as it is."
    before = (root/'results/rf-fast-evaluation.json').read_bytes()
    assert run('tools/measure.py', 'rf-fast').stdout == '' and (root/'results/rf-fast-evaluation.json').read_bytes() == before

def test_a_planned_row_is_a_row_of_the_comparison(tmp_path, monkeypatch):
    sys.path.insert(0, str(root/'tools'))
    import measure
    monkeypatch.setattr(measure, 'CACHE', tmp_path)
    way = measure.Way(measure.Sampling('midpoint', 5, w=1.), n=60)
    row, stored = measure.row(mnistgen.load('rf-fast', 'cpu'), way), json.loads((root/'results/rf-fast-evaluation.json').read_text())['rows'][0]
    assert stored.keys() - {'confusion'} <= row.keys() and row['way'] == way.json() and row['nfe'] == 10. and not {'milliseconds', 'parameters', 'model'} & row.keys()
    assert len(list(tmp_path.glob('*/*/000000-000060.npy'))) == 1

# ---- the command

def test_the_command_and_its_help(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main('compare rf-fast,ddpm --steps 2 --n 20 --untimed'.split()) == 0
    out = capsys.readouterr().out
    assert 'real digits' in out and 'DDIM-2, η = 1' in out and list(tmp_path.glob('runs/comparison/*/*/*.npy'))
    with pytest.raises(SystemExit): main('compare --help'.split())
    out = ' '.join(capsys.readouterr().out.split())
    assert all(words in out for words in ('--samplers', '--untimed', '--batch-size', '--eta', 'separated by commas'))

WRONG = [('gan', "unknown model 'gan'"), ('rf --samplers best', "unknown sampler 'best': choose " + list(SAMPLERS)[0]), ('rf --steps few', 'numbers separated by commas'),
         ('rf --steps 0', 'steps 0'), ('rf --n 1', 'at least 2'), ('rf --w 3', 'none of the rows takes it'), ('none.npy', 'no such file'),
         ('rf --samplers euler --eta 1', 'none of the rows takes it'), ('rf --eta much', 'eta much'), ('rf --batch-size 0', 'at least 1'), ('rf --device tpu', "device 'tpu'"),
         ('rf --seed -1', 'seed -1'), ('', 'models'), ('rf --samplers adaptive --steps 5 --rtol -1', 'rtol')]

@pytest.mark.parametrize('line, words', WRONG)
def test_a_mistake_is_one_line(line, words, capsys):
    assert main(['compare', *line.split()]) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.count('\n') == 1 and words in err, err
