"The speedrun's two scripts, as whole command lines; the numbers they give on a real budget are in results/."
import json, shutil, subprocess, sys
from pathlib import Path

import pytest

top = Path(__file__).resolve().parent.parent

def run(script, *argv): return subprocess.run([sys.executable, str(top/'benchmarks'/script), *argv], capture_output=True, text=True, cwd=top)

@pytest.fixture(scope='module')
def out(tmp_path_factory): return tmp_path_factory.mktemp('speedrun')

@pytest.mark.parametrize('contender', ['ddpm-fast', 'tutorial'])
def test_a_track(contender, out):
    "The clock starts with the process and ends the training; samples are drawn, judged and shown beside what was measured before."
    r = run('speedrun.py', '--minutes', '.5', '--n', '100', '--only', contender, '--out', str(out))
    assert r.returncode == 0, r.stderr
    rows = json.loads((out/'speedrun-0.5.json').read_text())
    row = next(q for q in rows if q['contender'] == contender)
    assert row['steps'] > 0 and row['seconds'] >= 29 and row['n'] == 100 and row['FD'] > row['floor']['FD'] > 0
    assert all(w in r.stdout for w in ('steps', 'images/s', 'FD / real', 'real digits', contender))
    if contender == 'tutorial': assert 'FD of ddpm-fast: ' in r.stdout and 'times smaller than that of tutorial' in r.stdout
    else: assert '--only tutorial' in r.stdout.splitlines()[-1]                         # what to run for a ratio
    assert (out/f'speedrun-0.5-{contender}-0.png').stat().st_size > 1000
    import mnistgen
    assert mnistgen.load(str(out/f'speedrun-0.5-{contender}-0.safetensors'), 'cpu').sample(2, steps=2).shape == (2, 1, 28, 28)

def test_both_are_compared(out):
    rows = json.loads((out/'speedrun-0.5.json').read_text())
    assert {r['contender'] for r in rows} == {'ddpm-fast', 'tutorial'}

def test_kept_weights_are_judged_again(out, tmp_path):
    "Without training, and with the numbers they had: the same weights and noise give the same digits."
    for f in out.glob('speedrun-0.5*'): shutil.copyfile(f, tmp_path/f.name)
    before = json.loads((out/'speedrun-0.5.json').read_text())
    (tmp_path/'speedrun-0.5.json').write_text(json.dumps([{**r, 'FD': -1., 'sampling': 'another'} for r in before]))
    r = run('speedrun.py', '--minutes', '.5', '--n', '100', '--judge', '--out', str(tmp_path))
    assert r.returncode == 0 and 'training' not in r.stderr, r.stderr
    facts = lambda rows: sorted((q['contender'], q['seed'], q['steps'], q['seconds'], round(q['FD'], 3), q['commit']) for q in rows)
    assert facts(json.loads((tmp_path/'speedrun-0.5.json').read_text())) == facts(before)

def test_nothing_to_judge_is_said_in_one_line(tmp_path):
    r = run('speedrun.py', '--minutes', '10', '--judge', '--out', str(tmp_path))
    assert r.returncode == 1 and r.stderr.count('\n') == 1 and 'no weights of 10 minutes' in r.stderr

def test_the_tracks_are_sampled_as_the_model_is():
    sys.path.insert(0, str(top/'benchmarks'))
    from speedrun import SAMPLING
    from mnistgen.zoo.models import MODELS
    assert SAMPLING == MODELS['ddpm-fast'].sampling
    for minutes in (10, 60): assert all(r['sampling'] == SAMPLING for r in json.loads((top/'results'/f'speedrun-{minutes}.json').read_text()))

@pytest.mark.parametrize('script, argv, words', [('speedrun.py', ['--only', 'nobody'], 'invalid choice'), ('ideas.py', ['no such idea'], 'unknown: no such idea')])
def test_bad_arguments(script, argv, words):
    r = run(script, *argv)
    assert r.returncode == 2 and words in r.stderr.splitlines()[-1] and not r.stdout

def test_the_log_is_of_these_ideas():
    "Every line of the log is of an idea as it is now written down, and says what it was compared with."
    sys.path.insert(0, str(top/'benchmarks'))
    from ideas import IDEAS
    log = json.loads((top/'results'/'speedrun-log.json').read_text())
    for r in log: assert json.loads(json.dumps(IDEAS[r['idea']])) == {k: r[k] for k in IDEAS[r['idea']]}, r['idea']
    assert [list(IDEAS).index(r['idea']) for r in log] == sorted(list(IDEAS).index(r['idea']) for r in log)

def test_what_is_kept_was_measured_twice_and_is_in_use():
    "With two seeds, and under what the list of models trains with."
    sys.path.insert(0, str(top/'benchmarks'))
    from ideas import IDEAS, WINNERS, line
    from mnistgen.zoo.models import MODELS
    log = json.loads((top/'results'/'speedrun-log.json').read_text())
    for name, winner in WINNERS.items():
        for idea in line(winner):
            if IDEAS[idea]['base'] not in (None, 'the report'): assert len({r['seed'] for r in log if r['idea'] == idea}) >= 2, idea
        m, s = MODELS['ddpm' if name == 'quick' else name], IDEAS[winner]['setting']
        quick = m.recipes['quick']
        for k, v in {**s['recipe'], 'process': s['process']}.items(): assert getattr(quick, k) == v, (name, k)
        assert {k: m.network.get(k, v) for k, v in s['network'].items()} == s['network']
