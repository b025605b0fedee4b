"""The site shows everything once and in its place, and it is published after the tests.

The pages are built once, by Quarto where it is installed."""
import ast
import html
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
import pytest
import yaml
from conftest import copy_tree, notebooks, root

def read(path): return Path(path).read_text(encoding='utf-8')
def cells(nb): return json.loads(read(root/nb))['cells']
def source(cell): return ''.join(cell['source'])

@pytest.fixture(scope='module')
def site(run, tmp_path_factory):
    "A copy of the tree, with the site built in it."
    if not shutil.which('quarto') and not importlib.util.find_spec('smalldocs'):
        pytest.skip('neither Quarto nor smalldocs (Python 3.11 or newer) is installed')
    copy = copy_tree(tmp_path_factory.mktemp('site')/'copy')
    run('tools/site.py', cwd=copy)
    return copy

def page_of(nb):
    "The page of a notebook, as Quarto and nbdev name it: nbs/00_unet.ipynb is unet.html."
    return nb.relative_to('nbs').with_name(re.sub(r'^\d+_', '', nb.stem) + '.html')

def words(text):
    "The letters and digits of a heading, without formulas and tags."
    text = re.sub(r'<math.*?</math>|\$.*?\$', '', text, flags=re.S)
    text = re.sub(r'\]\([^)]*\)', ']', re.sub(r'<[^>]*>', '', text))
    return re.findall(r'[^\W_]+', html.unescape(text).lower())

def contents(page):
    "The headings that the table of contents of `page` lists."
    nav = re.search(r'<nav id="TOC".*?</nav>', page, re.S)
    if not nav: return []
    return [words(text) for text in re.findall(r'<a [^>]*href="#.*?>(.*?)</a>', nav[0], re.S)]

def lines_of_text(cell):
    "The lines of a Markdown cell that are not in a block of code."
    return re.sub(r'^```.*?^```', '', source(cell), flags=re.M | re.S).splitlines()

def definitions(cell):
    "The classes and functions at the top of an exported cell."
    exported = re.search(r'^#\|\s*exports?\b', source(cell), re.M)
    if cell['cell_type'] != 'code' or not exported: return []
    code = re.sub(r'^\s*[%!].*$', '', source(cell), flags=re.M)
    return [n for n in ast.parse(code).body
            if isinstance(n, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))]

# ---- pages

def test_every_page_is_there(site):
    pages = {p.relative_to(site/'_docs').as_posix() for p in (site/'_docs').rglob('*.html')}
    assert pages == {page_of(nb).as_posix() for nb in notebooks()}

def test_pages_need_no_network(site):
    "No script, style or font comes from elsewhere. (Links that a reader may follow do.)"
    loads = re.compile(r'<script[^>]*\bsrc="https?:[^"]*"'
                       r'|<link[^>]*rel="stylesheet"[^>]*href="https?:[^"]*"')
    remote = [(p.name, m[0]) for p in (site/'_docs').rglob('*.html')
              for m in loads.finditer(read(p))]
    remote += [p.name for p in (site/'_docs').rglob('*.css')
               if re.search(r'@import[^;]*https?:', read(p))]
    assert remote == []

def test_broken_links_are_found(site, run, tmp_path):
    links = ['nowhere.html', '#nowhere', 'unet.html#nowhere', 'lab/nowhere.ipynb']
    shutil.copytree(site/'_docs', tmp_path/'docs')
    page = tmp_path/'docs/index.html'
    more = ''.join(f'<a href="{link}">x</a>' for link in links)
    page.write_text(read(page).replace('</body>', more + '</body>'), encoding='utf-8')
    p = run('tools/site.py', '--check', tmp_path/'docs', cwd=site, ok=False)
    assert p.returncode == 1
    assert [link for link in links if f'index.html: {link} (' not in p.stderr] == []

@pytest.mark.parametrize('nb', notebooks(), ids=str)
def test_signatures_stand_in_one_section(nb, site):
    """What a notebook exports is documented once, at the end of the page.

    nbdev's link to the source, which stands beside each signature, is nowhere above."""
    page = read(site/'_docs'/page_of(nb))
    names = [n.name for c in cells(nb) for n in definitions(c)
             if not n.name.startswith('_') and not re.search(r'^#\|\s*hide\b', source(c), re.M)]
    parts = re.split(r'<h2[^>]*>\s*API\s*</h2>', page)
    assert len(parts) == (2 if names else 1)
    assert '>source</a>' not in parts[0] and 'Exported source' not in page
    shown = [h.split('.')[-1] for h in re.findall(r'<h[34][^>]*>([\w.]+)</h[34]>', parts[-1])]
    assert not names or [n for n in names if n not in shown] == []

@pytest.mark.parametrize('nb', notebooks(), ids=str)
def test_no_heading_is_lost(nb, site):
    "A heading that the renderer takes for text is missing from the table of contents."
    listed = contents(read(site/'_docs'/page_of(nb)))
    headings = [line for c in cells(nb) if c['cell_type'] == 'markdown' for line in lines_of_text(c)
                if re.match(r'###? ', line)]
    assert [h for h in headings if words(h) not in listed] == []

def test_the_sidebar_is_numbered_as_the_files_are(site):
    def entries(items):
        for item in items:
            if isinstance(item, dict) and 'contents' in item: yield from entries(item['contents'])
            elif isinstance(item, dict): yield item['href'], item['text']
            else: yield item, ''
    config = yaml.safe_load(read(root/'_quarto.yml'))
    listed = list(entries(config['website']['sidebar']['contents']))
    assert sorted(f for f, _ in listed) == sorted(str(nb.relative_to('nbs')) for nb in notebooks())
    numbered = [(f, text) for f, text in listed if re.match(r'\d', f)]
    assert [text for f, text in numbered if text.split()[0] != f.split('_')[0]] == []
    sidebar = re.findall(r'class="menu-text">(.*?)</span>', read(site/'_docs/index.html'))
    assert [text for _, text in numbered if text not in sidebar] == []

# ---- its looks

def test_a_hundred_columns_of_code_fit(site):
    "Into the column of text at desktop width. Characters of the usual fonts are up to .62 em wide."
    html_format = yaml.safe_load(read(root/'_quarto.yml'))['format']['html']
    pixels = {k: int(v.removesuffix('px')) for k, v in html_format['grid'].items()}
    em = int(html_format['fontsize'].removesuffix('px'))
    styles = read(site/'_docs/styles.css')
    code = float(re.search(r'^pre, pre\.sourceCode \{ font-size: ([\d.]+)rem; \}', styles, re.M)[1])
    padding = float(re.search(r'^div\.sourceCode pre\.sourceCode \{ padding-left: ([\d.]+)em; '
                              r'padding-right: \1em; \}', styles, re.M)[1])
    column = pixels['body-width'] - 3*em                    # Quarto's gutters
    assert f'--sd-body-width: {column}px' in styles         # the same for smalldocs
    assert 100*.62*code*em + 2*padding*code*em + 2 <= column
    assert pixels['sidebar-width'] + pixels['margin-width'] + column + 6*em <= 1280

def test_figures_and_printed_lines_stay_in_the_column(site):
    "By selectors that match the markup of both renderers."
    styles = read(site/'_docs/styles.css')
    assert '\n.cell-output-display img { max-width: 100%; height: auto; }' in styles
    wrap = r'\n([^{}]*)\{ white-space: pre-wrap; overflow-wrap: anywhere; \}'
    wrapped = {s.split('*/')[-1].strip() for s in re.search(wrap, styles)[1].split(',')}
    assert {'div.sourceCode pre > code.sourceCode', '.cell-output pre code'} <= wrapped

# ---- commands and workflows

QUARTO = '''#!/bin/sh
# renders the one notebook that it is asked for into a README, or a site
case "$2" in
  --*) ;;
  *) [ -e "$2" ] || exit 1; worse=yes ;;
esac
mkdir -p _docs
if [ "$worse" ]; then echo worse > _docs/README.md; fi
'''

@pytest.mark.parametrize('command', ['nbdev_docs', 'nbdev_readme'])
def test_nbdev_leaves_the_readme_alone(command, run, env, tmp_path):
    "It would write a worse one than tools/readme.py."
    copy = copy_tree(tmp_path/'copy')
    (tmp_path/'bin').mkdir()
    (tmp_path/'bin/quarto').write_text(QUARTO)
    (tmp_path/'bin/quarto').chmod(0o755)
    (copy/'_proc').mkdir()
    shutil.copy(copy/'nbs/index.ipynb', copy/'_proc')
    os.utime(copy/'README.md', (0, 0))              # older than its notebook
    script = ('from pathlib import Path; import nbdev.quarto as q;'
              f'q.proc_nbs = lambda *a, **k: Path("_proc").resolve(); q.{command}()')
    run('-c', script, cwd=copy, ok=False, PATH=f'{tmp_path/"bin"}:{env["PATH"]}')
    assert read(copy/'README.md') == read(root/'README.md')

def workflow(): return yaml.safe_load(read(root/'.github/workflows/test.yml'))

def test_the_site_is_published_after_the_tests():
    "By the only job that may, never from a pull request, and not cancelled half-way."
    assert [p.name for p in (root/'.github/workflows').iterdir()] == ['test.yml']
    jobs = workflow()['jobs']
    assert sorted(jobs['deploy']['needs']) == sorted(set(jobs) - {'deploy'})
    assert "github.ref == 'refs/heads/main'" in jobs['deploy']['if']
    assert jobs['deploy']['concurrency'] == {'group': 'pages', 'cancel-in-progress': False}
    assert workflow()['permissions'] == {'contents': 'read'}
    assert [j for j in jobs if 'permissions' in jobs[j]] == ['deploy']

def test_one_job_renders_with_quarto_and_runs_the_checks():
    steps = workflow()['jobs']['site']['steps']
    quarto, = [s for s in steps if 'quarto-actions' in s.get('uses', '')]
    assert quarto['with'] == {'version': '1.7.34'}
    commands = [s['run'] for s in steps[steps.index(quarto):] if 'run' in s]
    assert any('TESTS=tests/test_site.py' in c for c in commands)
    assert commands[-1].startswith('make site')

def test_every_job_that_installs_keeps_pips_downloads():
    for name, job in workflow()['jobs'].items():
        python = [s['with'] for s in job['steps'] if 'setup-python' in s.get('uses', '')]
        assert name == 'deploy' or [w['cache'] for w in python] == ['pip'], name
