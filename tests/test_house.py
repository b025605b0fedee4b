"The house: what is generated is fresh, what is committed is clean, and what is installed elsewhere is complete."
import ast, configparser, hashlib, io, json, os, re, tarfile, tokenize, zipfile
from pathlib import Path
import pytest
from conftest import copy_tree, notebooks, root, tree

def hashes(folder):
    return {str(f.relative_to(folder)): os.readlink(f) if f.is_symlink() else hashlib.sha1(f.read_bytes()).hexdigest()
            for f in sorted(folder.rglob('*')) if (f.is_symlink() or f.is_file()) and '__pycache__' not in f.parts}

def cells(nb): return json.loads((root/nb).read_text(encoding='utf-8'))['cells']
def joined(x): return x if isinstance(x, str) else ''.join(x)

# ---- generated files are fresh

@pytest.mark.parametrize('command', ['nbdev.doclinks:nbdev_export', 'nbdev.clean:nbdev_clean'])
def test_nbdev_leaves_the_tree_unchanged(command, run, tmp_path):
    "The library is what the notebooks say, and the notebooks are clean. In a copy, so that a developer's own tree is left alone."
    module, name = command.split(':')
    before = hashes(copy_tree(tmp_path/'copy'))
    run('-c', f'import sys; from {module} import {name}; sys.argv = ["{name}"]; {name}()', cwd=tmp_path/'copy')
    after = hashes(tmp_path/'copy')
    assert {f for f in before | after if before.get(f) != after.get(f)} == set(), f'run {name} and commit what it changes'

def test_readme_is_fresh(run): run('tools/readme.py', '--check')

def test_readme_notices_a_change(run, tmp_path):
    copy = copy_tree(tmp_path/'copy')
    (copy/'README.md').write_text((copy/'README.md').read_text(encoding='utf-8') + 'More.\n', encoding='utf-8')
    assert run('tools/readme.py', '--check', cwd=copy, ok=False).returncode == 1

def test_readme_links_lead_somewhere():
    links = re.findall(r'\]\(([^)\s#]+)', (root/'README.md').read_text(encoding='utf-8'))
    assert [l for l in links if not re.match('[a-z]+:', l) and not (root/l).exists()] == []

# ---- what is committed is clean

def test_no_path_of_a_machine():
    "No file, and no output saved in a notebook, names a folder of the machine that made it."
    path = re.compile(r'(?<![\w.~/-])/(work|root|home/\w+|Users/\w+|mnt|tmp/\w+)/')
    found = []
    for f in tree():
        if f.suffix in ('.gz', '.safetensors', '.png', '.npy', '.npz') or (root/f).is_symlink() or f.name == 'test_house.py': continue
        text = (root/f).read_text(encoding='utf-8')
        text = re.sub(r'"image/png": "[^"]*"', '', text)
        found += [f'{f}: {m[0]}' for m in path.finditer(text)]
    assert found == []

@pytest.mark.parametrize('nb', notebooks(), ids=str)
def test_saved_outputs_are_clean(nb):
    "No error and nothing on stderr, where warnings go, is published."
    bad = [(i, o['output_type'], joined(o.get('text', ''))) for i, c in enumerate(cells(nb)) for o in c.get('outputs', [])
           if o['output_type'] == 'error' or o.get('name') == 'stderr']
    assert bad == []

@pytest.mark.parametrize('nb', notebooks(), ids=str)
def test_first_cell_is_title_and_description(nb):
    "nbdev makes the page's title of the first cell and drops whatever else stands in it."
    first = cells(nb)[0]
    assert first['cell_type'] == 'markdown'
    assert re.fullmatch(r'# \S[^\n]*\n+> \S[^\n]*\n*', joined(first['source']))

@pytest.mark.parametrize('nb', notebooks(), ids=str)
def test_imports_have_cells_of_their_own(nb):
    """nbdev runs every cell with an import in it when it makes the site, hidden and slow ones too, but not the cells between them:
    what else stands in such a cell fails there, or has its outputs replaced."""
    mixed = []
    for i, c in enumerate(cells(nb)):
        source = re.sub(r'^\s*[%!].*$', '', joined(c['source']), flags=re.M)
        if c['cell_type'] != 'code' or re.search(r'^#\|\s*(eval: false|export)', source, re.M): continue
        code, imports = ast.parse(source), (ast.Import, ast.ImportFrom)
        if any(isinstance(n, imports) for n in ast.walk(code)) and not all(isinstance(n, imports) for n in code.body): mixed.append((i, source))
    assert mixed == []

# ---- the house: who imports whom

def rank(module, number):
    "Where a module stands: lab, the chapters in their order, beyond, zoo, the comparison."
    top = module.split('.')[1] if module.count('.') else ''
    places = dict(lab=0, beyond=100, zoo=200, comparison=300)
    return places.get(top, number.get(module, 400))                  # the package itself comes last

def imports(path, module):
    "The modules of this library that a module imports, also inside its functions."
    package = module.rpartition('.')[0]
    for n in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(n, ast.Import): yield from (a.name for a in n.names if a.name.startswith('mnistgen'))
        if not isinstance(n, ast.ImportFrom): continue
        base = '.'.join(package.split('.')[:len(package.split('.')) - n.level + 1]) if n.level else ''
        source = '.'.join(filter(None, [base, n.module]))
        if source.split('.')[0] == 'mnistgen': yield source

def modules(root):
    "{module: path} of the library, and the number of each chapter."
    paths = {'.'.join(p.relative_to(root).with_suffix('').parts): p for p in sorted((root/'mnistgen').rglob('*.py'))
             if p.name not in ('__init__.py', '_modidx.py')}
    chapters = {re.sub(r'^\d+_', 'mnistgen.', nb.stem): int(nb.stem[:2]) + 1 for nb in (root/'nbs').glob('[0-9]*_*.ipynb')}
    return paths, chapters

def upward(root):
    "Imports that point down the page."
    paths, chapters = modules(root)
    return [(m, other) for m, p in paths.items() for other in imports(p, m)
            if rank(other, chapters) > rank(m, chapters) or rank(other, chapters) == rank(m, chapters) and other != m and m in chapters]

def test_imports_point_one_way():
    "lab <- chapters in their order <- beyond <- zoo <- comparison."
    paths, chapters = modules(root)
    assert {'mnistgen.lab.engine', 'mnistgen.ddim', 'mnistgen.zoo.models'} <= paths.keys() and chapters['mnistgen.unet'] == 1
    assert ('mnistgen.zoo.generator', 'mnistgen.ddpm') in [(m, o) for m, p in paths.items() for o in imports(p, m)]
    assert upward(root) == []

@pytest.mark.parametrize('module, line', [('lab/data', 'from ..unet import UNet'), ('ddpm', 'from .ddim import sample_ddim'), ('vae', 'from mnistgen.zoo.models import load')])
def test_an_import_that_points_down_is_found(module, line, tmp_path):
    copy = copy_tree(tmp_path/'copy')
    with open(copy/f'mnistgen/{module}.py', 'a', encoding='utf-8') as f: f.write(f'def late():\n    {line}\n')
    assert [m for m, _ in upward(copy)] == ['mnistgen.' + module.replace('/', '.')]

# ---- the page: what a reader's eye meets

def code_cells(nb):
    "(number, source) of the code cells, without lines that only a notebook knows."
    return [(i, re.sub(r'^\s*[%!].*$', '', joined(c['source']), flags=re.M)) for i, c in enumerate(cells(nb)) if c['cell_type'] == 'code']

def crowded(source):
    "Lines with more than one statement (a `;` that ends a cell only hides its value), and tuples of more than two assigned at once."
    lines, tokens = [], list(tokenize.generate_tokens(io.StringIO(source).readline))
    for a, b in zip(tokens, tokens[1:]):
        if a.string == ';' and a.type == tokenize.OP and b.type not in (tokenize.NEWLINE, tokenize.COMMENT, tokenize.ENDMARKER, tokenize.NL): lines.append(a.start[0])
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, ast.Assign) and isinstance(n.value, ast.Tuple):
            if len(n.targets) > 2 or any(isinstance(t, ast.Tuple) and len(t.elts) > 2 for t in n.targets): lines.append(n.lineno)
    return lines

@pytest.mark.parametrize('nb', notebooks(), ids=str)
def test_code_fits_the_page(nb):
    "100 columns is what the site shows without wrapping."
    assert [(i, l) for i, s in code_cells(nb) for l in s.splitlines() if len(l) > 100] == []

@pytest.mark.parametrize('nb', notebooks(), ids=str)
def test_one_statement_a_line(nb):
    assert [(i, s.splitlines()[l - 1]) for i, s in code_cells(nb) for l in crowded(s)] == []

def test_crowded_lines_are_noticed():
    assert crowded('a = 1; b = 2') == [1] and crowded('x = 3\nif x: y = 1; z = 2') == [2] and crowded('a, b, c = 1, 2, 3') == [1]
    assert crowded('show(x);') == crowded("print('a; b')") == crowded('B, C, H, W = x.shape') == crowded('a, b = 1, 2') == []

@pytest.mark.parametrize('nb', notebooks(), ids=str)
def test_what_a_cell_shows_is_stored(nb):
    "A reader sees every table and figure without running anything."
    missing = []
    for i, s in code_cells(nb):
        if re.search(r'^#\|\s*(hide|slow|export|eval: false)', s, re.M) or cells(nb)[i]['outputs']: continue
        statements = [ast.unparse(n) for n in ast.parse(s).body if isinstance(n, (ast.Expr, ast.With, ast.For))]
        missing += [(i, t) for t in statements if re.search(r'(?<![\w.])(print|show_\w+)\(|plt\.subplots\(', t)
                    or re.match(r'\w*[Tt]able\(', t)]
    assert missing == []

@pytest.mark.parametrize('nb', notebooks(), ids=str)
def test_one_definition_in_an_exported_cell(nb):
    "The documentation of a cell's definitions stands beside it, in no order that one can rely on."
    several = []
    for i, s in code_cells(nb):
        if not re.search(r'^#\|\s*exports?i?\b', s, re.M) or 'eval: false' in s: continue
        defined = [n.name for n in ast.parse(s).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        if len(defined) > 1: several.append((i, defined))
    assert several == []

@pytest.mark.parametrize('nb', notebooks(), ids=str)
def test_a_heading_follows_a_blank_line(nb):
    "Pandoc takes it for text otherwise, and it is missing from the table of contents."
    hidden = []
    for i, c in enumerate(cells(nb)):
        lines = re.sub(r'^```.*?^```', '', joined(c['source']), flags=re.M | re.S).splitlines()
        if c['cell_type'] == 'markdown': hidden += [(i, b) for a, b in zip(lines, lines[1:]) if a.strip() and re.match(r'#{1,6} ', b)]
    assert hidden == []

# ---- numbers of the README

def test_readme_speed_is_what_the_benchmark_stored():
    bench = json.loads((root/'results/benchmark-engine.json').read_text())
    rows = {work: r for work, r in bench['rows'].items() if r.get('device', bench['device']['name']) == bench['device']['name']}      # those of one machine
    assert len(rows) > 8
    readme = (root/'README.md').read_text()
    for work, r in rows.items():
        if work.startswith('memory'): continue
        against = ' | '.join(f"{r[c]['seconds']:.3g} s ({r[c]['seconds']/r['mnistgen']['seconds']:.1f}×)" for c in ('eager', 'best'))
        assert f"| {work} | {r['mnistgen']['seconds']:.3g} s | {against} |" in readme

def test_the_benchmark_runs(run):
    "One short measurement, whose time is not looked at."
    out = json.loads(run('benchmarks/engine.py', '--worker', 'train latent, batch 128', 'mnistgen', 1, PYTHONPATH=str(root)).stdout)
    assert len(out['seconds']) == 1 and out['seconds'][0] > 0 and out['memory'] > 100

# ---- importing is quick, quiet and light

def test_import_adds_little_to_torch(run):
    "Less than half a second on top of torch; the best of several runs, because other work may be going on."
    script = 'import time, torch, numpy; t = time.perf_counter(); import mnistgen; print(time.perf_counter() - t)'
    took = []
    for _ in range(5):
        took.append(float(run('-c', script).stdout))
        if took[-1] < .5: return
    assert min(took) < .5

def test_import_opens_no_socket_and_stays_light(run):
    script = '''
import socket, sys, torch
def refuse(*a, **k): raise AssertionError('a socket was opened')
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
before = set(sys.modules)
import mnistgen
print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))
'''
    assert {'matplotlib', 'torchvision', 'nbdev', 'IPython', 'diffusers'} & set(run('-c', script).stdout.split()) == set()

# ---- installed elsewhere

@pytest.fixture(scope='module')
def wheel(run, tmp_path_factory):
    tmp = tmp_path_factory.mktemp('wheel')
    run('-m', 'build', '--no-isolation', '--wheel', '--sdist', '--outdir', tmp/'dist', copy_tree(tmp/'copy'))
    return next((tmp/'dist').glob('*.whl'))

def bundled(): return {str(f) for f in tree() if f.parent in (Path('mnistgen/mnist'), Path('mnistgen/weights'))}

def test_wheel_has_modules_data_and_weights(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {str(f) for f in tree() if f.parts[0] == 'mnistgen'} <= inside
    assert sum(f.endswith('.gz') for f in bundled()) == 4 and any(f.endswith('.safetensors') for f in bundled())

def test_sdist_has_data_and_weights(wheel):
    names = tarfile.open(next(wheel.parent.glob('*.tar.gz'))).getnames()
    assert bundled() | {'settings.ini', 'LICENSE', 'NOTICE', 'README.md'} <= {n.split('/', 1)[-1] for n in names}

def test_wheel_says_what_it_is(wheel):
    z = zipfile.ZipFile(wheel)
    read = lambda name: next(z.read(n).decode() for n in z.namelist() if n.endswith(f'.dist-info/{name}'))
    ini = configparser.ConfigParser(delimiters=['=']); ini.read(root/'settings.ini')
    meta = read('METADATA')
    for line in (f"Version: {ini['DEFAULT']['version']}", 'Requires-Python: >=3.10', 'Provides-Extra: dev', 'Project-URL: Documentation', 'Classifier: '):
        assert f'\n{line}' in meta
    points = configparser.ConfigParser(delimiters=['=']); points.read_string(read('entry_points.txt'))
    assert points['console_scripts']['mnistgen'] == 'mnistgen.zoo.cli:main' and points['nbdev']['mnistgen'] == 'mnistgen._modidx:d'

def test_wheel_installed_elsewhere_samples(wheel, run, tmp_path):
    "Data and weights come from where the wheel was installed, with no clone in sight."
    site, cwd = tmp_path/'site', tmp_path/'cwd'; cwd.mkdir()
    run('-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--disable-pip-version-check', '--target', site, wheel)
    assert Path(run('-c', 'import mnistgen; print(mnistgen.__file__)', cwd=cwd, PYTHONPATH=str(site)).stdout.strip()).is_relative_to(site)
    run('-m', 'mnistgen.zoo.cli', 'sample', 'ddpm', '--n', 2, '--sampler', 'ddim', '--steps', 5, '--out', 'x.png', cwd=cwd, PYTHONPATH=str(site))
    assert (cwd/'x.png').stat().st_size > 100
