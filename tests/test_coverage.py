"Nothing of the report is missing from the coverage table, each of its links leads somewhere, and each of its numbers is stored."
import html, json, re
from collections import Counter
import pytest
from mnistgen.comparison import coverage, with_numbers
from conftest import notebooks, root
from test_site import page_of, site                                  # the pages, built once for these tests

# what the report has, by its own numbering
TABLES = {
    1: 'UNet architecture configuration', 2: 'Training configuration', 3: 'Generation speed comparison: DDPM vs DDIM', 4: 'VAE architecture configuration',
    5: 'VAE training configuration', 6: 'Pixel-space UNet vs. Latent UNet configuration', 7: 'Latent diffusion training configuration',
    8: 'Generation speed comparison across all methods', 9: 'Training time comparison', 10: 'Training configuration for both conditioned models',
    11: 'Per-sample generation time', 12: 'Rectified Flow training configuration', 13: 'Sampling speed comparison across all generative approaches'}
FIGURES = {
    1: 'UNet architecture', 2: 'loss over 100 epochs', 3: 'samples at training stages', 4: 'DDPM images', 5: 'DDPM denoising', 6: '16 digits by DDIM', 7: 'DDIM denoising',
    8: 'UMAP in pixel space', 9: 'VAE architecture', 10: 'VAE loss', 11: 'VAE reconstructions', 12: 'VAE latent space', 13: 'LDM loss', 14: 'LDM samples at stages',
    15: 'LDM samples, DDPM', 16: 'LDM DDPM denoising', 17: 'LDM samples, DDIM', 18: 'LDM DDIM denoising', 19: 'losses of conditioned models', 20: 'class-conditional samples',
    21: 'CFG sweep, concatenation', 22: 'CFG sweep, cross-attention', 23: 'losses of rectified flow', 24: 'pixel flow at stages', 25: 'latent flow at stages',
    26: 'final samples', 27: 'pixel flow denoising'}
EQUATIONS = {
    1: 'q(x_t | x_0)', 2: 'x_t in closed form', 3: 'cosine schedule', 4: 'noise-prediction loss', 5: 'x0_hat', 6: 'mu_t', 7: 'x_{t-1}', 8: 'DDIM update', 9: 'sigma',
    10: 'L_LDM', 11: 'guided noise', 12: 'forward interpolation', 13: 'velocity', 14: 'flow loss', 15: 'Euler'}
REFERENCES = {1: 'Esser', 2: 'Ho, J', 3: 'Salimans', 4: 'Kingma', 5: 'Liu', 6: 'McInnes', 7: 'Nichol', 8: 'Rombach', 9: 'Ronneberger', 10: 'Song'}
CLAIMS = {      # how many statements stand under each heading
    '2.5 What worked': 4, '2.5 What did not': 2, '2.5 Why not great': 3, '3.6 What worked': 4, '3.6 What did not': 2, '3.6 Improvement': 3,
    '4.6 What worked': 3, '4.6 What did not': 3, '4.6 Improvement': 2, '5.6 What worked': 4, '5.6 What did not': 1, '5.6 Improvement': 4, '6 Conclusions': 6}
OPEN = {        # subjects of issues, as open items name them
    'Saying which digit: 05_cfg, classifier-free guidance', 'Straight lines: 06_rectified_flow', 'From fifty steps to one: beyond/few_steps',
    'The comparison: 07_comparison, every table and figure of the report, ours beside theirs'}

def items(): return json.loads((root/'nbs/coverage.json').read_text(encoding='utf-8'))
def cells(nb): return json.loads((root/'nbs'/nb).read_text(encoding='utf-8'))['cells']
def text(nb): return '\n'.join(''.join(c['source']) for c in cells(nb))
ITEMS = pytest.mark.parametrize('item', items(), ids=lambda r: r['item'])

def test_nothing_of_the_report_is_missing():
    listed = Counter(r['item'] for r in items())
    wanted = [f'{kind} {n}' for kind, all_ in (('Table', TABLES), ('Figure', FIGURES), ('Equation', EQUATIONS), ('Reference', REFERENCES)) for n in all_]
    wanted += [f'{section} {i + 1}' for section, n in CLAIMS.items() for i in range(n)]
    assert listed == Counter(wanted)
    assert (len(TABLES), len(FIGURES), len(EQUATIONS), len(REFERENCES)) == (13, 27, 15, 10)

@ITEMS
def test_an_item_is_whole(item):
    assert {'item', 'what', 'where', 'status', 'found'} <= item.keys() <= {'item', 'what', 'where', 'status', 'found', 'cites', 'slip'}
    assert item['status'] in ('confirmed', 'corrected', 'done', 'open') and item['what'] and item['found'] and '\n' not in item['found']
    named = re.findall(r'issue "([^"]*)"', item['found'])
    assert bool(named) == (item['status'] == 'open') and set(named) <= OPEN

@ITEMS
def test_its_link_resolves_to_an_anchor_in_the_notebook(item):
    nb, _, anchor = item['where'].partition('#')
    assert (root/'nbs'/nb).is_file() and anchor
    assert re.findall(r'<a id="([^"]+)"></a>', text(nb)).count(anchor) == 1
    if 'cites' in item: assert item['cites'] in text(nb)

@ITEMS
def test_its_numbers_are_stored(item):
    shown = with_numbers(item['found'], str(root/'results'))
    assert not re.search(r'[{}]', shown) and 'nan' not in shown.split()

def test_measured_numbers_are_not_typed():
    "A distance (FD) in the table is read from a result."
    typed = [r['item'] for r in items() if re.search(r'FD (?:of )?\d', r['found'])]
    assert typed == []

@pytest.mark.parametrize('kind, n', [('Table', 13), ('Figure', 27), ('Equation', 15), ('Reference', 10), ('', sum(CLAIMS.values()))])
def test_it_is_rendered_in_the_comparison(kind, n):
    "As it is now: the stored output is that of the file and of the results."
    table = coverage(kind, root/'nbs/coverage.json', str(root/'results'))
    assert len(table) == n
    shown = [''.join(o['data']['text/markdown']) for c in cells('07_comparison.ipynb') for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})]
    assert table._repr_markdown_() in shown, 'refresh nbs/07_comparison.ipynb'

def test_its_links_resolve_on_the_site(site):
    anchors = {}
    page = (site/'_docs/comparison.html').read_text(encoding='utf-8')
    hrefs = {html.unescape(h) for h in re.findall(r'<a [^>]*href="([^"]+)"', page)}
    bad = []
    for r in items():
        nb, _, anchor = r['where'].partition('#')
        target = next(page_of(n) for n in notebooks() if n.as_posix() == f'nbs/{nb}').as_posix()
        if target not in anchors: anchors[target] = set(re.findall(r'\bid="([^"]+)"', (site/'_docs'/target).read_text(encoding='utf-8')))
        if anchor not in anchors[target] or f'{target}#{anchor}' not in {h.removeprefix('./') for h in hrefs}: bad.append((r['item'], f'{target}#{anchor}'))
    assert bad == []
