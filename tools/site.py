"""Build the site into _docs/ and check every internal link and anchor of it: `python tools/site.py [--out DIR] [--check DIR]`.

Quarto renders it where Quarto is installed, smalldocs where it is not, from the same _quarto.yml and processed notebooks.
Both leave pages with the same names. What they do not do alike is put right in the rendered pages:

- smalldocs keeps the number in `00_unet.html`; Quarto, and the links that nbdev makes of names in backticks, do without.
- Those links of nbdev point at the published site; here they become relative, so that a copy of the site is complete.
- Maths is MathML, which browsers show without any script: Quarto writes it itself (`html-math-method: mathml`), and for smalldocs,
  which would load KaTeX from a CDN, latex2mathml does.
- Themes import fonts from the web; those imports are dropped, and the system's fonts show."""
import argparse, html, os, re, shutil, subprocess, sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

root = Path(__file__).resolve().parent.parent

class Anchors(HTMLParser):
    "The ids and the links of one page."
    def __init__(self, text):
        super().__init__(); self.ids, self.links = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for k, v in attrs:
            if k == 'id' or (tag == 'a' and k == 'name'): self.ids.add(v)
            elif k in ('href', 'src') and v: self.links.append(v)

def read_pages(out): return {p: Anchors(p.read_text(encoding='utf-8')) for p in sorted(Path(out).rglob('*.html'))}

def target_of(link, page, out, baseurl=''):
    "The file and the anchor that `link` on `page` leads to inside the site `out`, or None where it leads outside."
    u = urlsplit(link)
    if u.scheme or u.netloc or not (u.path or u.fragment): return None
    path = unquote(u.path)
    if path.startswith('/'): dest = Path(out)/path.removeprefix(baseurl + '/').lstrip('/')
    else: dest = page.parent/path if path else page
    dest = Path(os.path.normpath(dest))
    return (dest/'index.html' if dest.is_dir() else dest), unquote(u.fragment)

def broken_links(out, baseurl=''):
    "A line for each link of the site in the folder `out` that leads to a page, a file or an anchor that is not there."
    pages, broken = read_pages(out), []
    for page, a in pages.items():
        for link in dict.fromkeys(a.links):
            found = target_of(link, page, out, baseurl)
            if found is None: continue
            dest, anchor = found
            if not dest.exists(): why = 'no such file'
            elif anchor and anchor != 'top' and dest in pages and anchor not in pages[dest].ids: why = 'no such anchor'
            else: continue
            broken.append(f'{page.relative_to(out)}: {link} ({why})')
    return broken

def drop_numbers(out):
    "Give smalldocs' pages the names that Quarto gives them: 00_unet.html becomes unet.html, in every link too."
    names = {p.name: re.sub(r'^\d+[a-zA-Z0-9]*_', '', p.name.lower()) for p in out.rglob('*.html')}
    names = {a: b for a, b in names.items() if a != b}
    if not names: return
    pattern = re.compile(r'(?<![\w-])(%s)' % '|'.join(map(re.escape, names)))
    for p in [*out.glob('search.json'), *out.glob('sitemap.xml'), *out.rglob('*.html')]:
        p.write_text(pattern.sub(lambda m: names[m[1]], p.read_text(encoding='utf-8')), encoding='utf-8')
        if p.name in names: p.rename(p.with_name(names[p.name]))

def maths(out):
    "Turn the TeX that smalldocs leaves for KaTeX into MathML."
    from latex2mathml.converter import convert
    def mathml(m):
        tex = html.unescape(m[2]).replace('{aligned}', '{split}').replace(r'\tag{', r'\qquad\tag{')      # what latex2mathml calls them
        return convert(tex, display='block' if m[1] == 'display' else 'inline')
    for p in out.rglob('*.html'):
        text = re.sub(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', mathml, p.read_text(encoding='utf-8'), flags=re.S)
        text = re.sub(r'<link [^>]*href="[^"]*katex[^"]*"[^>]*>|<script [^>]*src="[^"]*katex[^"]*"[^>]*></script>', '', text)
        p.write_text(text, encoding='utf-8')

def relative_links(out, base):
    "Make links to the published site at `base` relative. Where a name has no heading of its own, its class or its page is what there is."
    pages = read_pages(out)
    for page in pages:
        def relative(m):
            dest, anchor = out/m[2], m[3] or ''
            while anchor and dest in pages and anchor not in pages[dest].ids: anchor = anchor.rpartition('.')[0]
            return m[1] + Path(os.path.relpath(dest, page.parent)).as_posix() + ('#' + anchor if anchor else '') + '"'
        text = page.read_text(encoding='utf-8')
        page.write_text(re.sub(r'(<a\b[^>]*?\bhref=")%s/([^"#]*)(?:#([^"]*))?"' % re.escape(base), relative, text), encoding='utf-8')

def drop_remote_fonts(out):
    "No page loads anything from elsewhere only to look different."
    for p in out.rglob('*.css'):
        text = p.read_text(encoding='utf-8')
        new = re.sub(r'''@import\s*(?:url\(\s*["']?https?:[^)]*\)|"https?:[^"]*"|'https?:[^']*')\s*;?''', '', text)
        if new != text: p.write_text(new, encoding='utf-8')

def render(out, cfg):
    "Process the notebooks into _proc/, render them, and leave the site in the folder `out`."
    from nbdev.serve import proc_nbs
    if out.exists() and any(out.iterdir()) and not (out/'.nojekyll').exists(): sys.exit(f'{out} holds something else than a site: it is not replaced.')
    quarto = shutil.which('quarto')
    if not quarto and not find_spec('smalldocs'): sys.exit('Neither Quarto nor smalldocs is installed (smalldocs needs Python 3.11 or newer).')
    cache = proc_nbs(n_workers=2, force=True)          # afresh: what nbdev takes from the library shows in pages that did not change
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    if quarto: cmd = [quarto, 'render', '--no-execute']
    else: cmd = [sys.executable, '-m', 'smalldocs.cli', 'render', '--quiet']
    subprocess.run(cmd, cwd=cache, env=env, check=True)
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(cache/cfg.doc_path.name, out)
    if not quarto: drop_numbers(out); maths(out)
    relative_links(out, cfg.doc_host + cfg.doc_baseurl)
    drop_remote_fonts(out)
    (out/'.nojekyll').touch()                          # or Pages would leave out folders whose names start with _

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', help='where the site goes (default: _docs/)')
    p.add_argument('--check', metavar='DIR', help='build nothing; check the site in DIR')
    a = p.parse_args()
    start = Path.cwd(); os.chdir(root); sys.path.insert(0, str(root))     # notebooks import the library beside them
    from nbdev.config import get_config
    cfg = get_config()
    out = (start/(a.check or a.out)).resolve() if a.check or a.out else cfg.doc_path
    if not a.check: render(out, cfg)
    elif not any(out.rglob('*.html')): sys.exit(f'{out}: no pages')
    broken = broken_links(out, cfg.doc_baseurl)
    if broken: sys.exit('Broken links:\n' + '\n'.join(broken))
    print(f'{out}: {len(read_pages(out))} pages, every internal link leads somewhere')

if __name__ == '__main__': main()
