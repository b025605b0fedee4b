"The site builds, and the check of its links finds a broken one."
import importlib.util, re, shutil
import pytest
from conftest import copy_tree, notebooks

pytestmark = pytest.mark.skipif(not shutil.which('quarto') and not importlib.util.find_spec('smalldocs'),
                                reason='neither Quarto nor smalldocs (Python 3.11 or newer) is installed')

@pytest.fixture(scope='module')
def site(run, tmp_path_factory):
    "The site, built from a copy of the tree."
    copy = copy_tree(tmp_path_factory.mktemp('site')/'copy')
    run('tools/site.py', cwd=copy)
    return copy

def test_every_page_is_there(site):
    "Under the names that Quarto and nbdev give them: nbs/00_unet.ipynb is unet.html."
    pages = {p.relative_to(site/'_docs').as_posix() for p in (site/'_docs').rglob('*.html')}
    assert pages == {nb.relative_to('nbs').with_name(re.sub(r'^\d+_', '', nb.stem) + '.html').as_posix() for nb in notebooks()}

def test_pages_need_no_network(site):
    "No script, style or font comes from elsewhere. (Links that a reader may follow do.)"
    remote = [(p.name, m[0]) for p in (site/'_docs').rglob('*.html')
              for m in re.finditer(r'<script[^>]*\bsrc="https?:[^"]*"|<link[^>]*rel="stylesheet"[^>]*href="https?:[^"]*"', p.read_text(encoding='utf-8'))]
    remote += [p.name for p in (site/'_docs').rglob('*.css') if re.search(r'@import[^;]*https?:', p.read_text(encoding='utf-8'))]
    assert remote == []

@pytest.mark.parametrize('link', ['nowhere.html', '#nowhere', 'unet.html#nowhere', 'lab/nowhere.ipynb'])
def test_a_broken_link_is_found(site, run, tmp_path, link):
    shutil.copytree(site/'_docs', tmp_path/'docs')
    page = tmp_path/'docs/index.html'
    page.write_text(page.read_text(encoding='utf-8').replace('</body>', f'<a href="{link}">x</a></body>'), encoding='utf-8')
    p = run('tools/site.py', '--check', tmp_path/'docs', cwd=site, ok=False)
    assert p.returncode == 1 and f'index.html: {link}' in p.stderr
