"tools/prose.py tells prose from markup, and one sentence from the next."
import json, subprocess
import pytest
from conftest import root

@pytest.fixture(scope='module')
def tool():
    import importlib.util
    spec = importlib.util.spec_from_file_location('prose', root/'tools/prose.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

@pytest.mark.parametrize('text, lengths', [
    ('One two three. Four five!', [3, 2]),
    ('It is 0.5 of 1,000. Yes?\nNo.', [5, 1, 1]),
    ('# A heading\n\nSome words', [2]),
    ('> A description of it', [4]),
    ('Before:\n\n```python\nx = 1. And = 2\n```\n\nAfter.', [1, 1]),
    ('Before.\n\n| a | b |\n|--|--|\n| one two. Three | 4 |', [1]),
    ('With $x_0 = a + b$ and `f(x, y=3)` it works.', [6]),
    ('The loss is\n\n$$a = b \\tag{3}$$\n\nwhere $a$ is known.', [8]),
    ('The loss is\n\n$$a = b.$$\n\nHere $a$ is known.', [4, 4]),
    ('See [the first chapter](00_unet.ipynb#x. Y).', [4]),
    ('[Ho et al. (2020)](https://x.org/a.b) say so, cf. Eq. 3. [Others](x) do not.', [9, 3]),
    ('- One thing.\n- Another, *very* **long** thing\n1. A third', [2, 4, 2]),
    ('<a id="fig-9"></a>**Figure 9.** The same as a picture.', [5]),
    ('He says "so it is." Then <b>he</b> goes (never returns). (Never.)', [5, 5, 1]),
    ('A dash – or two — is no word.', [7]),
    ('<!-- Nothing. To see. -->\n\n![a picture](x.png)\n\n***', []),
])
def test_sentences(text, lengths, tool):
    assert [len(tool.words(s)) for s in tool.sentences(text)] == lengths

def test_only_markdown_cells_are_read(tool):
    cells = [dict(cell_type='markdown', source=['# Title\n', '\n', 'One sentence.']),
             dict(cell_type='code', source='"Not this."', outputs=[])]
    assert tool.prose(json.dumps(dict(cells=cells))) == ['One sentence.']

def test_measures(tool):
    said = [' '.join(['word']*n) for n in (30, 31, 4, 8)]
    assert tool.measures(said) == (73, 19, .25)
    assert tool.measures([]) == (0, 0, 0)

def test_it_prints_a_row_for_each_notebook(run):
    rows = run('tools/prose.py', 'nbs/03_', 'beyond').stdout.splitlines()
    beyond = sorted(f.name for f in (root/'nbs/beyond').glob('*.ipynb'))
    assert [r.split()[0] for r in rows[1:-1]] == ['03_vae.ipynb', *(f'beyond/{f}' for f in beyond)]
    words = [int(r.split()[-3].replace(',', '')) for r in rows[1:]]
    assert words[-1] == sum(words[:-1]) > 1000

def test_it_prints_the_long_sentences(run, tool):
    out = run('tools/prose.py', '--long', 'zoo/').stdout.splitlines()
    said = [s for f in sorted((root/'nbs/zoo').glob('*.ipynb'))
            for s in tool.prose(f.read_text(encoding='utf-8'))]
    long = [f'  {len(tool.words(s))}: {s}' for s in said if len(tool.words(s)) > 30]
    assert [line for line in out if line.startswith('  ') and ': ' in line] == long

def test_it_measures_a_revision(run, tool):
    "Where the tree is a clone."
    if subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=root, capture_output=True).returncode:
        pytest.skip('no revisions here')
    committed = subprocess.run(['git', 'show', 'HEAD:nbs/01_ddpm.ipynb'], cwd=root,
                               capture_output=True, encoding='utf-8').stdout
    total, *_ = tool.measures(tool.prose(committed))
    shown = run('tools/prose.py', '--at', 'HEAD', '01_').stdout.splitlines()[1]
    assert shown.split()[:2] == ['01_ddpm.ipynb', f'{total:,}']
    failed = run('tools/prose.py', '--at', 'no-such-revision', ok=False)
    assert failed.returncode == 1 and len(failed.stderr.splitlines()) == 1
