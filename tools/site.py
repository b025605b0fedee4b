"""Build the site and check every internal link and anchor of it.

    python tools/site.py [--out DIR] [--check DIR]

It goes into _docs/, or DIR. Quarto renders it where Quarto is installed, smalldocs where it is not,
from the same _quarto.yml and processed notebooks. Both leave pages with the same names.

Before the notebooks are rendered, the signatures that nbdev writes beside each exported cell move
to a section "API" at the end of the page: the text shows the code, and nothing is shown twice.

What the two do not do alike is put right in the rendered pages:

- smalldocs keeps the number in `00_unet.html`; Quarto, and the links that nbdev makes of names in
  backticks, do without.
- Those links of nbdev point at the published site; here they become relative, so that a copy of the
  site is complete.
- Maths is MathML, which browsers show without any script: Quarto writes it itself
  (`html-math-method: mathml`); for smalldocs, which would load KaTeX, latex2mathml does.
- Themes import fonts from the web; those imports are dropped, and the system's fonts show."""
import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

root = Path(__file__).resolve().parent.parent

def read(path): return Path(path).read_text(encoding='utf-8')
def write(path, text): Path(path).write_text(text, encoding='utf-8')

# ---- the API section

def documented(cell):
    "The name whose documentation `cell` shows; None if it is not one of those that nbdev adds."
    found = re.search(r'^show_doc\(([\w.]+)', ''.join(cell['source']), re.M)
    return found[1] if found and cell['cell_type'] == 'code' else None

def documentation(name, cell):
    "What `cell` shows, as Markdown; the heading of a method is one level lower."
    text = ''.join(''.join(o['data']['text/markdown']) for o in cell['outputs'] if 'data' in o)
    return text.replace(f'\n### {name}\n', f'\n#### {name}\n') if '.' in name else text

def move_api(nb):
    """Move the documentation that nbdev put between the cells of `nb` into one section at its end.

    In the order of the text; what is added to a class stands under the class."""
    groups = {}
    for cell in nb['cells']:
        name = documented(cell)
        if name: groups.setdefault(name.split('.')[0], []).append((name, cell))
    if not groups: return
    texts = ['## API']
    for group in groups.values():
        group.sort(key=lambda entry: '.' in entry[0])         # the class, then its methods
        texts += [documentation(name, cell) for name, cell in group]
    cells = [c for c in nb['cells'] if not documented(c)]
    nb['cells'] = cells + [dict(cell_type='markdown', metadata={}, source=t) for t in texts]

# ---- links

class Anchors(HTMLParser):
    "The ids and the links of one page."
    def __init__(self, text):
        super().__init__()
        self.ids = set()
        self.links = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for k, v in attrs:
            if k == 'id' or (tag == 'a' and k == 'name'): self.ids.add(v)
            elif k in ('href', 'src') and v: self.links.append(v)

def read_pages(out): return {p: Anchors(read(p)) for p in sorted(Path(out).rglob('*.html'))}

def target_of(link, page, out, baseurl=''):
    "The file and the anchor in the site `out` that `link` on `page` leads to; None if outside."
    u = urlsplit(link)
    if u.scheme or u.netloc or not (u.path or u.fragment): return None
    path = unquote(u.path)
    if path.startswith('/'): dest = Path(out)/path.removeprefix(baseurl + '/').lstrip('/')
    else: dest = page.parent/path if path else page
    dest = Path(os.path.normpath(dest))
    return (dest/'index.html' if dest.is_dir() else dest), unquote(u.fragment)

def fault(dest, anchor, pages):
    "What is wrong with a link to `anchor` in the file `dest`, or None."
    if not dest.exists(): return 'no such file'
    if anchor in ('', 'top') or dest not in pages: return None
    return None if anchor in pages[dest].ids else 'no such anchor'

def broken_links(out, baseurl=''):
    "A line for each link in the site `out` to a page, a file or an anchor that is not there."
    pages, broken = read_pages(out), []
    for page, anchors in pages.items():
        for link in dict.fromkeys(anchors.links):
            found = target_of(link, page, out, baseurl)
            why = fault(*found, pages) if found else None
            if why: broken.append(f'{page.relative_to(out)}: {link} ({why})')
    return broken

# ---- what is put right in rendered pages

def drop_numbers(out):
    "Name smalldocs' pages as Quarto does, in every link too: 00_unet.html becomes unet.html."
    names = {p.name: re.sub(r'^\d+[a-zA-Z0-9]*_', '', p.name.lower()) for p in out.rglob('*.html')}
    names = {a: b for a, b in names.items() if a != b}
    if not names: return
    pattern = re.compile(r'(?<![\w-])(%s)' % '|'.join(map(re.escape, names)))
    for p in [*out.glob('search.json'), *out.glob('sitemap.xml'), *out.rglob('*.html')]:
        write(p, pattern.sub(lambda m: names[m[1]], read(p)))
        if p.name in names: p.rename(p.with_name(names[p.name]))

def mathml(m):
    "The formula that `m` found in a page of smalldocs, as MathML."
    from latex2mathml.converter import convert
    tex = html.unescape(m[2])
    # what latex2mathml calls them
    tex = tex.replace('{aligned}', '{split}').replace(r'\tag{', r'\qquad\tag{')
    return convert(tex, display='block' if m[1] == 'display' else 'inline')

def maths(out):
    "Turn the TeX that smalldocs leaves for KaTeX into MathML."
    formula = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)
    katex = re.compile(r'<link [^>]*href="[^"]*katex[^"]*"[^>]*>'
                       r'|<script [^>]*src="[^"]*katex[^"]*"[^>]*></script>')
    for p in out.rglob('*.html'): write(p, katex.sub('', formula.sub(mathml, read(p))))

def relative_links(out, base):
    """Make links to the published site at `base` relative.

    Where a name has no heading of its own, its class or its page is what there is."""
    pages = read_pages(out)
    link = re.compile(r'(<a\b[^>]*?\bhref=")%s/([^"#]*)(?:#([^"]*))?"' % re.escape(base))
    for page in pages:
        def relative(m):
            dest, anchor = out/m[2], m[3] or ''
            while anchor and dest in pages and anchor not in pages[dest].ids:
                anchor = anchor.rpartition('.')[0]
            path = Path(os.path.relpath(dest, page.parent)).as_posix()
            return m[1] + path + ('#' + anchor if anchor else '') + '"'
        write(page, link.sub(relative, read(page)))

def drop_remote_fonts(out):
    "No page loads anything from elsewhere only to look different."
    remote = re.compile(r'''@import\s*(?:url\(\s*["']?https?:[^)]*\)|"https?:[^"]*"'''
                        r'''|'https?:[^']*')\s*;?''')
    for p in out.rglob('*.css'):
        text = read(p)
        new = remote.sub('', text)
        if new != text: write(p, new)

# ---- all of it

def process():
    "Process the notebooks into _proc/, afresh: what nbdev takes from the library may have changed."
    from nbdev.serve import proc_nbs
    cache = proc_nbs(n_workers=2, force=True)
    for p in cache.rglob('*.ipynb'):
        nb = json.loads(read(p))
        move_api(nb)
        write(p, json.dumps(nb, ensure_ascii=False))
    return cache

def render(out, cfg):
    "Process the notebooks, render them, and leave the site in the folder `out`."
    if out.exists() and any(out.iterdir()) and not (out/'.nojekyll').exists():
        sys.exit(f'{out} holds something else than a site: it is not replaced.')
    quarto = shutil.which('quarto')
    if not quarto and not find_spec('smalldocs'):
        sys.exit('Neither Quarto nor smalldocs (Python 3.11 or newer) is installed.')
    cache = process()
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    if quarto: cmd = [quarto, 'render', '--no-execute']
    else: cmd = [sys.executable, '-m', 'smalldocs.cli', 'render', '--quiet']
    subprocess.run(cmd, cwd=cache, env=env, check=True)
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(cache/cfg.doc_path.name, out)
    if not quarto:
        drop_numbers(out)
        maths(out)
    relative_links(out, cfg.doc_host + cfg.doc_baseurl)
    drop_remote_fonts(out)
    (out/'.nojekyll').touch()       # or Pages would leave out folders whose names start with _

def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', help='where the site goes (default: _docs/)')
    p.add_argument('--check', metavar='DIR', help='build nothing; check the site in DIR')
    a = p.parse_args()
    start = Path.cwd()
    os.chdir(root)
    sys.path.insert(0, str(root))   # notebooks import the library beside them
    from nbdev.config import get_config
    cfg = get_config()
    out = (start/(a.check or a.out)).resolve() if a.check or a.out else cfg.doc_path
    if not a.check: render(out, cfg)
    elif not any(out.rglob('*.html')): sys.exit(f'{out}: no pages')
    broken = broken_links(out, cfg.doc_baseurl)
    if broken: sys.exit('Broken links:\n' + '\n'.join(broken))
    print(f'{out}: {len(read_pages(out))} pages, every internal link leads somewhere')

if __name__ == '__main__': main()
