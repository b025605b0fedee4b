"No stored result is stale: it is of the weights that are bundled, or says of which; what notebooks show was made from the results and weights that are there."
import hashlib, json, re, sys
from pathlib import Path
import numpy as np
import pytest
from conftest import notebooks, root
sys.path.insert(0, str(root/'tools'))
import bundle, refresh, results as steps
from mnistgen.lab.data import BUNDLED, load_images
from mnistgen.lab.plotting import caption
from mnistgen.lab.store import WEIGHTS, checksum, load_checkpoint, read_header
from mnistgen.zoo.evaluation import JUDGES
from mnistgen.zoo.models import MODELS

RESULTS = root/'results'
def read(name): return json.loads((RESULTS/name).read_text(encoding='utf-8'))
def header(name): return read_header(WEIGHTS/f'{name}.safetensors')
def bundled(): return [m for m in MODELS if (WEIGHTS/f'{m}.safetensors').is_file()]
def known(): return {header(m)['checksum']: m for m in bundled()}
def unbundled(): return read('unbundled.json')
def stored(pattern): return sorted(f.name for f in RESULTS.glob(pattern))

# of weights that were trained for the measurement and are not kept, or of none
TRAINED_FOR_IT = {'benchmark-engine.json', 'cfg-time.json', 'rf-time.json', 'ddpm-grey.json', 'ldm-failures.json', 'ldm-starts.json', 'ldm-variants.json',
                  'speedrun-10.json', 'speedrun-60.json', 'speedrun-log.json', 'vae-betas.json', 'rf-choices.json', 'ddpm-quick.json', 'unbundled.json',
                  'few-steps-minutes.json', 'few-steps-time.json', 'few-steps-ways.json', 'guide-latency.json'}
ARRAYS_BESIDE = {'ddpm-strip.npz': 'ddpm-16x1000.json', 'ddpm-grey.npz': 'ddpm-grey.json'}   # which a JSON file speaks for

def owner(name):
    "The model that the name of a file begins with."
    return max((m for m in MODELS if re.match(re.escape(m) + r'[-.]', name)), key=len, default=None)

def wrong(weights, name):
    "What is the matter with the weights that a result names; None if nothing is."
    if isinstance(weights, dict) and 'judges' in weights:
        here = dict(judges={k: header(f'judge-{k}')['checksum'] for k in JUDGES},
                    images={s: checksum({'pixels': load_images(split=s, root=BUNDLED).pixels}) for s in ('train', 'test')})
        return None if weights == here else 'of other judges or images'
    if isinstance(weights, dict):
        return None if weights and all(known().get(c) == m for m, c in weights.items()) else 'of other weights'
    if weights in unbundled(): return None
    model = known().get(weights)
    if model is None: return 'of weights that are neither bundled nor in unbundled.json'
    whose = owner(name)                       # or of its teacher, beside it
    return None if whose in (None, model) or MODELS[whose].teacher == model else f'of {model}'

def is_record(name): return isinstance(read(name), dict) and 'history' in read(name)

@pytest.mark.parametrize('name', stored('*.json'))
def test_a_result_is_of_the_bundled_weights(name):
    if name in TRAINED_FOR_IT or is_record(name): return
    assert 'weights' in read(name), 'name it in TRAINED_FOR_IT if it is of no weights'
    assert wrong(read(name)['weights'], name) is None

@pytest.mark.parametrize('name', stored('*.npz'))
def test_arrays_are_of_the_bundled_weights(name):
    if name in ARRAYS_BESIDE: return
    weights = str(np.load(RESULTS/name)['weights'])
    assert wrong(json.loads(weights) if weights.startswith('{') else weights, name) is None

@pytest.mark.parametrize('name', stored('*.npy'))
def test_pictures_stand_beside_what_speaks_for_them(name):
    beside = read(Path(name).with_suffix('.json').name)
    assert len(np.load(RESULTS/name)) == beside['n'] and beside['weights'] in known()

def test_stale_weights_are_noticed():
    other = '0'*32
    assert wrong(other, 'ddpm-evaluation.json') and wrong(header('rf')['checksum'], 'ddpm-evaluation.json') == 'of rf'
    assert wrong({'ddpm': header('rf')['checksum']}, 'ldm-edges.json') and wrong({}, 'ldm-edges.json') and wrong({'judges': {}}, 'evaluation-failures.json')
    assert wrong(header('ddpm')['checksum'], 'ddpm-evaluation.json') is None
    assert owner('cfg-fast-eps-ddpm.json') == 'cfg-fast' and owner('rf-fast-curve.json') == 'rf-fast' and owner('rf-curve.json') == 'rf'

def test_weights_that_are_not_bundled_are_in_use():
    named = {read(n)['weights'] for n in stored('*.json') if isinstance(read(n), dict) and isinstance(read(n).get('weights'), str)}
    assert unbundled().keys() <= named - known().keys() and all('mnistgen train ' in how for how in unbundled().values())

@pytest.mark.parametrize('model', bundled())
def test_the_record_is_that_of_the_weights(model):
    "As far as both say it: recipe, commit, data, network; the losses at the end."
    h = header(model)
    if not (RESULTS/f'{model}.json').exists():
        assert h['recipe'].get('minutes'), 'only the speedrun leaves no record, but says its minutes'
        return
    record = read(f'{model}.json')
    same = ('model', 'parameters', 'recipe', 'commit', 'network', 'process_config', 'autoencoder', 'start')
    assert {k: record.get(k) for k in same} == {k: h.get(k) for k in same}
    last = record['history'][-1]
    assert (last['train_loss'], last['eval_loss']) == (h['train_loss'], h['eval_loss'])
    minutes = json.loads((WEIGHTS/'minutes.json').read_text())
    assert minutes[h['checksum']] == pytest.approx(bundle.minutes(record), abs=.006)

def test_minutes_are_of_bundled_weights():
    assert json.loads((WEIGHTS/'minutes.json').read_text()).keys() <= known().keys()

def test_headlines_are_rows_of_the_results():
    "What `mnistgen list` shows."
    for model, s in json.loads((WEIGHTS/'scores.json').read_text()).items():
        assert s['weights'] == header(model)['checksum']
        row = next(r for r in read(f'{model}-evaluation.json')['rows'] if r['way'] == s['way'])
        assert (row['train']['FD'], row['floor']['train']['FD'], row['confident']) == (s['FD'], s['floor'], s['confident'])

@pytest.mark.parametrize('model', ['vae'])
def test_latents_are_of_the_autoencoder(model):
    h = header(f'latents-{model}')
    assert h['autoencoder'] == header(model)['checksum']
    assert h['images'] == {s: checksum({'pixels': load_images(split=s, root=BUNDLED).pixels}) for s in ('train', 'test')}

@pytest.mark.parametrize('model', [m for m in bundled() if MODELS[m].autoencoder])
def test_latent_models_are_of_the_autoencoder(model):
    h = header(model)['autoencoder']
    assert h['checksum'] == header(h['name'])['checksum']

# ---- what notebooks show

def noted(): return json.loads((root/'nbs/outputs.json').read_text())
def reads(nb):
    "Does code of a notebook name the folder of results?"
    code = '\n'.join(''.join(c['source']) for c in json.loads((root/nb).read_text())['cells'] if c['cell_type'] == 'code')
    return nb.name != 'store.ipynb' and bool(re.search(r'RESULTS|\.\./results', code))              # which defines how

@pytest.mark.parametrize('nb', notebooks(), ids=str)
def test_outputs_are_of_the_results_that_are_there(nb):
    "Figures with their captions, tables and printed lines were made from these very files."
    name = nb.relative_to('nbs').as_posix()
    if reads(nb): assert any(f.startswith('results/') for f in noted().get(name, {})), f'python tools/refresh.py {nb}'
    changed = [f for f, d in noted().get(name, {}).items() if not (root/f).exists() or refresh.digest(root/f) != d]
    assert changed == [], f'python tools/refresh.py {nb}'

def test_a_changed_result_is_noticed(run, tmp_path):
    "A notebook of two cells, refreshed in a small tree: it notes what it has read, and only that."
    (tmp_path/'tools').mkdir(), (tmp_path/'nbs').mkdir(), (tmp_path/'results').mkdir(), (tmp_path/'mnistgen/weights').mkdir(parents=True)
    for f in ('tools/refresh.py', 'settings.ini'): (tmp_path/f).write_text((root/f).read_text())
    for f in ('read', 'other', 'written'): (tmp_path/f'results/{f}.json').write_text('{}')
    (tmp_path/'mnistgen/weights/rf.safetensors').write_bytes((WEIGHTS/'vae-light.safetensors').read_bytes())
    source = ["from safetensors import safe_open", "import json\ntext = open('../results/read.json').read()", "with open('../results/written.json', 'w') as f: _ = f.write('[]')",
              "with safe_open('../mnistgen/weights/rf.safetensors', 'pt') as f: print(len(f.keys()) > 0)"]
    cell = lambda i, s: dict(cell_type='code', id=f'c{i}', metadata={}, outputs=[], execution_count=None, source=s)
    nb = dict(cells=[cell(i, s) for i, s in enumerate(source)], metadata={}, nbformat=4, nbformat_minor=5)
    (tmp_path/'nbs/small.ipynb').write_text(json.dumps(nb))
    run('tools/refresh.py', 'nbs/small.ipynb', cwd=tmp_path)
    found = json.loads((tmp_path/'nbs/outputs.json').read_text())
    assert found == {'small.ipynb': {f: refresh.digest(tmp_path/f) for f in ('mnistgen/weights/rf.safetensors', 'results/read.json')}}

def captions(): return {caption(read(n)): n for n in stored('*.json') if is_record(n)}

@pytest.mark.parametrize('nb', notebooks(), ids=str)
def test_printed_captions_are_those_of_the_records(nb):
    "A line such as 'AMD EPYC, 1 thread, 40 of 40 epochs, batch 256, seed 0' in an output is that of a stored run."
    shown = set()
    for c in json.loads((root/nb).read_text())['cells']:
        for o in c.get('outputs', []):
            texts = [o.get('text', ''), *[v for k, v in o.get('data', {}).items() if k in ('text/plain', 'text/markdown')]]
            for t in texts: shown |= set(re.findall(r'(?:\w+: )?([^\n:|]+, (?:\d+ of \d+ epochs|[\d.]+ minutes)(?: after \d+ of an earlier run)?, batch \d+, seed \d+)', ''.join(t)))
    if nb.parts[1] in ('lab', 'zoo'): return                         # which train small networks of their own as examples
    assert shown <= captions().keys()

# ---- make results

def test_each_result_is_written_by_one_step():
    found = {f.name: steps.written_by(f.name) for f in RESULTS.iterdir() if f.name != 'unbundled.json'}
    assert {n: w for n, w in found.items() if len(w) != 1} == {}, 'say in tools/results.py what writes it'

def test_steps_exist_and_come_after_what_they_need():
    commands = [c for c, _ in steps.STEPS]
    assert len(set(commands)) == len(commands)
    for c in commands:
        words = c.split()
        assert words[0] == '-m' or (root/words[0]).is_file(), c
        assert all((root/w).is_file() for w in words if w.startswith('nbs/')), c
    slow = {f'nbs/{c.split("nbs/")[1]}' for c in commands if 'nbs/' in c}
    writes = {nb.as_posix() for nb in notebooks() if re.search(r'#\| slow(?:(?!%%%%).)*?(?:save\(|save_arrays\(|np\.save)', '\n'.join(
        '%%%%' + ''.join(c['source']) for c in json.loads((root/nb).read_text())['cells'] if c['cell_type'] == 'code'), re.S)}
    assert writes - {'nbs/zoo/cli.ipynb'} <= slow                    # its slow cell writes into a temporary folder
    for weights in re.findall(r'--weights (runs/[\w-]+)', '\n'.join(commands)):
        trained = next(i for i, c in enumerate(commands) if c.endswith(f'--out {weights}'))
        assert trained < min(i for i, c in enumerate(commands) if f'--weights {weights}/' in c)

def test_the_list_runs_nothing(run, tmp_path, monkeypatch):
    out = run('tools/results.py', '--list').stdout.splitlines()
    assert len(out) == len(steps.STEPS) and all(f'python {c}' in line for (c, _), line in zip(steps.STEPS, out))
    some = run('tools/results.py', '--dry-run', '--only', 'rf-fast').stdout.splitlines()
    assert 0 < len(some) < len(out) and all('rf-fast' in line for line in some)
    p = run('tools/results.py', '--list', '--only', 'nowhere', ok=False)
    assert p.returncode == 1 and p.stderr.count('\n') == 1

def test_it_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capfd):
    "Two steps, of which the second fails at first; then with other weights, and again."
    (tmp_path/'results').mkdir()
    (tmp_path/'results/one.json').write_text('before')
    (tmp_path/'step.py').write_text("import sys, pathlib; name = sys.argv[1]; print('runs', name, flush=True); sys.exit(name == 'two' and not pathlib.Path('ready').exists())")
    for k, v in dict(top=tmp_path, RESULTS=tmp_path/'results', STAMPS=tmp_path/'runs/results.json', STEPS=[('step.py one', ['one.json']), ('step.py two', [])]).items():
        monkeypatch.setattr(steps, k, v)
    ran = lambda: re.findall(r'^runs (\w+)', capfd.readouterr().out, re.M)
    with pytest.raises(SystemExit) as e: steps.main([])
    assert ran() == ['one', 'two'] and 'step.py two: exit 1' in str(e.value)
    (tmp_path/'ready').touch()
    steps.main([])
    assert ran() == ['two']
    steps.main([])
    assert ran() == []
    monkeypatch.setattr(steps, 'weights', lambda: 'others')
    steps.main([])
    assert ran() == ['one', 'two'] and (tmp_path/'results/one.json').exists()
    steps.main(['--again', '--only', 'one'])
    assert ran() == ['one'] and not (tmp_path/'results/one.json').exists() and (tmp_path/'runs/results-before/one.json').read_text() == 'before'

def test_make_knows_it():
    make = (root/'Makefile').read_text()
    assert re.search(r'^# make results ', make, re.M) and re.search(r'^results: ', make, re.M) and 'make results' in (root/'CONTRIBUTING.md').read_text()
