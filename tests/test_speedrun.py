"The speedrun's scripts, as whole command lines; the numbers of a real budget are in results/."
import json, shutil, subprocess, sys
from pathlib import Path

import pytest

top = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(top/'benchmarks'))

# The first step of `tutorial` ends after 5 s of work here, nearly all of it imports: half a minute
# leaves a processor room to be six times slower. Of .2 minutes one step was left on a busy one.
MINUTES = .5
NAME = f'speedrun-{MINUTES:g}'

def run(script, *argv):
    return subprocess.run([sys.executable, str(top/'benchmarks'/script), *argv],
                          capture_output=True, text=True, cwd=top)

def run_track(out, *argv):
    return run('speedrun.py', '--minutes', str(MINUTES), '--n', '100', '--out', str(out), *argv)

def stored(path): return json.loads(path.read_text())

def log(): return stored(top/'results'/'speedrun-log.json')

@pytest.fixture(scope='module')
def out(tmp_path_factory): return tmp_path_factory.mktemp('speedrun')

# ---- the tracks

@pytest.mark.parametrize('contender', ['ddpm-fast', 'tutorial'])
def test_a_track(contender, out):
    """The clock starts with the process and ends the training; samples are drawn, judged and shown
    beside what was measured before."""
    r = run_track(out, '--only', contender)
    assert r.returncode == 0, r.stderr
    row = next(q for q in stored(out/f'{NAME}.json') if q['contender'] == contender)
    assert row['steps'] > 0 and row['seconds'] >= 60*MINUTES - 1
    assert row['n'] == 100 and row['FD'] > row['floor']['FD'] > 0
    for word in ('steps', 'images/s', 'FD / real', 'real digits', contender):
        assert word in r.stdout
    if contender == 'tutorial':
        assert 'FD of ddpm-fast: ' in r.stdout and 'times smaller than that of tutorial' in r.stdout
    else:                                                      # what to run for a ratio
        assert '--only tutorial' in r.stdout.splitlines()[-1]
    assert (out/f'{NAME}-{contender}-0.png').stat().st_size > 1000
    import mnistgen
    g = mnistgen.load(str(out/f'{NAME}-{contender}-0.safetensors'), 'cpu')
    assert g.sample(2, steps=2).shape == (2, 1, 28, 28)

def test_both_are_compared(out):
    rows = stored(out/f'{NAME}.json')
    assert {r['contender'] for r in rows} == {'ddpm-fast', 'tutorial'}

def facts(path):
    "What must not change when weights are judged again."
    keys = 'contender', 'seed', 'steps', 'seconds', 'commit'
    return sorted((*(r[k] for k in keys), round(r['FD'], 3)) for r in stored(path))

def test_kept_weights_are_judged_again(out, tmp_path):
    """Without training, and with the numbers they had: the same weights and noise give the same
    digits."""
    for f in out.glob(f'{NAME}*'): shutil.copyfile(f, tmp_path/f.name)
    before, copy = out/f'{NAME}.json', tmp_path/f'{NAME}.json'
    copy.write_text(json.dumps([{**r, 'FD': -1., 'sampling': 'another'} for r in stored(before)]))
    r = run_track(tmp_path, '--judge')
    assert r.returncode == 0 and 'training' not in r.stderr, r.stderr
    assert facts(copy) == facts(before)

def test_nothing_to_judge_is_said_in_one_line(tmp_path):
    r = run('speedrun.py', '--minutes', '10', '--judge', '--out', str(tmp_path))
    assert r.returncode == 1
    assert r.stderr.count('\n') == 1 and 'no weights of 10 minutes' in r.stderr

def test_the_tracks_are_sampled_as_the_model_is():
    from mnistgen.lab.options import Sampling
    from mnistgen.zoo.models import MODELS
    from speedrun import SAMPLING
    assert SAMPLING == MODELS['ddpm-fast'].sampling
    for minutes in (10, 60):
        for r in stored(top/'results'/f'speedrun-{minutes}.json'):
            assert r['sampling'] == SAMPLING.json() and Sampling(**r['sampling']) == SAMPLING

@pytest.mark.parametrize('script, argv, words', [
    ('speedrun.py', ['--only', 'nobody'], 'invalid choice'),
    ('ideas.py', ['no such idea'], 'unknown: no such idea'),
])
def test_bad_arguments(script, argv, words):
    r = run(script, *argv)
    assert r.returncode == 2 and words in r.stderr.splitlines()[-1] and not r.stdout

# ---- the log of ideas

def test_the_log_is_of_these_ideas():
    """Every line of the log is of an idea as it is now written down, and says what it was compared
    with."""
    from ideas import IDEAS
    rows, order = log(), list(IDEAS)
    for r in rows:
        idea = IDEAS[r['idea']]
        assert json.loads(json.dumps(idea)) == {k: r[k] for k in idea}, r['idea']
    places = [order.index(r['idea']) for r in rows]
    assert places == sorted(places)

def test_every_idea_has_its_parts():
    "Whatever a setting names is there: spaces, networks, trainers, choices of the process."
    from idea_worker import NETWORKS, SPACES, TRAINERS, process_of
    from ideas import IDEAS
    from mnistgen.lab.training import Recipe
    processes = {}
    for name, idea in IDEAS.items():
        s = idea['setting']
        assert s['space'] in SPACES and s.get('net', 'UNet') in NETWORKS, name
        assert s.get('trainer') in {None, 'Plain', 'Transport', 'Stratified', *TRAINERS}, name
        processes[name], _ = process_of(s), Recipe(**s['recipe'])
    assert processes['v'].coupling == 'independent' and processes['v'].times == 'uniform'
    assert processes['transport'].coupling == 'transport'
    assert processes['times spread evenly'].times == 'uniform, spread evenly'

def test_times_are_spread_evenly():
    "One of n in each n-th of the times."
    import torch
    from idea_worker import EVEN
    from mnistgen.ddpm import TIMES
    from mnistgen.lab.data import make_rng
    uniform, logit_normal = [TIMES[EVEN[k]](50, make_rng('test'), 'cpu') for k in EVEN]
    assert (50*uniform).long().equal(torch.arange(50))
    share = torch.special.ndtr(torch.logit(logit_normal))
    assert (share*50 - torch.arange(50) - .5).abs().max() < .75

def test_transport_pairs_with_the_nearest_noise():
    "The noise is the same in another order, nearer to its images; evaluation leaves it alone."
    import torch
    from mnistgen.lab.data import make_rng
    from mnistgen.rectified_flow import transport
    x0, ε = torch.randn(2, 16, 1, 4, 4, generator=make_rng('test'))
    paired = transport(x0, ε, None)
    assert sorted(paired.flatten(1).tolist()) == sorted(ε.flatten(1).tolist())
    assert (x0 - paired).square().sum() < (x0 - ε).square().sum()
    assert transport(x0, x0.flip(0), None).equal(x0)
    with torch.no_grad(): assert transport(x0, ε, None) is ε

def test_what_is_kept_was_measured_twice_and_is_in_use():
    "With two seeds, and under what the list of models trains with."
    from ideas import IDEAS, WINNERS, line
    from mnistgen.zoo.models import MODELS
    rows = log()
    for name, winner in WINNERS.items():
        for idea in line(winner):
            if IDEAS[idea]['base'] in (None, 'the report'): continue
            assert len({r['seed'] for r in rows if r['idea'] == idea}) >= 2, idea
        m, s = MODELS['ddpm' if name == 'quick' else name], IDEAS[winner]['setting']
        wanted = {**s['recipe'], 'process': s['process']}
        for k, v in wanted.items(): assert getattr(m.recipes['quick'], k) == v, (name, k)
        assert {k: m.network.get(k, v) for k, v in s['network'].items()} == s['network']
