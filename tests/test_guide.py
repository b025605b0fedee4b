"""The panels: what they know, without a browser; and both in JupyterLab, in a real one.

Where no Chromium is installed the browser's tests are skipped, unless MNISTGEN_BROWSER=required,
as continuous integration has it: then they fail."""
import base64
import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import pytest
import torch
from conftest import root
import mnistgen
from mnistgen.lab.data import to_uint8
from mnistgen.lab.options import LABEL_OPTIONS, SAMPLERS, options_of, refusal
from mnistgen.zoo.guide import (DenoisingLab, Drawn, GuidanceLab, Newest, controls_of, offered,
                                usual_options)

def last(results): return [*results][-1]
def drawn_by(line): return to_uint8(eval(line)).view(-1, 28, 28)

@pytest.fixture
def lab(): return GuidanceLab()

# ---- importing

def test_the_panels_are_imported_when_they_are_asked_for(run):
    script = '''
import sys, mnistgen
print({m for m in ('ipywidgets', 'IPython', 'matplotlib', 'mnistgen.zoo.guide') if m in sys.modules})
print({'guidance_lab', 'denoising_lab'} <= set(dir(mnistgen)))
mnistgen.guidance_lab
print('mnistgen.zoo.guide' in sys.modules, 'ipywidgets' in sys.modules)
try: mnistgen.guidance_laboratory
except AttributeError as e: print(e)
'''
    assert run('-c', script).stdout.splitlines() == [
        'set()', 'True', 'True False', "module 'mnistgen' has no attribute 'guidance_laboratory'"]

# ---- what a panel knows

@pytest.mark.parametrize('name', offered(conditional=True))
def test_every_model_of_the_panel_draws(lab, name):
    drawn = last(lab.draw(lab.usual(name) | dict(steps=2, n=3, labels=[4, 4, 4])))
    assert drawn.done and drawn.png.startswith(b'\x89PNG')
    assert drawn.images.shape == (3, 28, 28) and drawn.seconds > 0

CHOICES = [dict(), dict(w=3., interval=(200., 600.), rescale=.5), dict(labels=[7]*10, negative=9),
           dict(labels=[1, 2, 3]*3 + [1]), dict(labels=[]), dict(n=4, labels=[3, 8]*2, seed=5, w=0.),
           dict(eta=1., spacing='trailing', steps=7), dict(renoise='unguided', w=.6)]

@pytest.mark.parametrize('choice', CHOICES, ids=str)
def test_the_same_settings_are_the_same_picture_and_the_line_draws_it(lab, choice):
    settings = lab.usual('cfg-fast') | choice
    drawn = last(lab.draw(settings))
    assert last(GuidanceLab().draw(settings)).png == drawn.png
    assert drawn_by(drawn.line).equal(drawn.images)
    options = {k: v for k, v in lab.arguments(settings).items()}
    assert drawn.nfe == mnistgen.load('cfg-fast').evaluations(**options)
    other = last(lab.draw(settings | dict(seed=settings['seed'] + 1)))
    assert other.png != drawn.png and not other.images.equal(drawn.images)

@pytest.mark.parametrize('sampler', SAMPLERS)
def test_every_sampler_in_both_panels(lab, sampler):
    for panel in (lab, DenoisingLab()):
        settings = panel.usual('rf-fast', sampler)
        settings['steps'] = settings['steps'] and 3
        drawn = last(panel.draw(settings))
        assert drawn.done and drawn_by(drawn.line).equal(drawn.images), drawn.words

@pytest.mark.parametrize('change, words', [
    (dict(w=float('nan')), 'w nan: choose a number'), (dict(eta=2.), 'from 0 to 1'),
    (dict(interval=(6., 5.)), 'smaller one first'), (dict(seed=-1), 'seed -1'),
    (dict(n=0), 'n 0'), (dict(labels=[11]*10), 'from 0 to 9'), (dict(steps=0), 'from 1 to 1000'),
    (dict(sampler='x'), "unknown sampler 'x'"), (dict(model='ddpm'), "unknown model 'ddpm'"),
    (dict(zero_init=.5), 'velocity'), (dict(negative=12), 'choose 0 to 9'),
    (dict(size=3), "unknown option 'size'")], ids=str)
def test_what_is_wrong_is_said_in_words(lab, change, words):
    settings = lab.usual('cfg-fast') | change
    assert words in lab.why_not(settings)
    drawn = last(lab.draw(settings))
    assert drawn.refused and words in drawn.words and '\n' not in drawn.words and drawn.png is None

@pytest.mark.parametrize('arguments', [dict(model='nobody'), dict(w='strong'), dict(labels='7'),
                                       dict(n=1000), dict(steps=0), dict(speed=1)], ids=str)
@pytest.mark.parametrize('panel', ['guidance_lab', 'denoising_lab'])
def test_wrong_arguments_of_a_panel_are_one_line(panel, arguments):
    assert '\n' not in refusal(getattr(mnistgen, panel), **arguments)

def test_no_control_is_offered_that_the_library_refuses():
    "For every model and sampler, each control's words and the ends of each slider are accepted."
    for name in ('cfg-fast', 'rf-fast', 'ddpm'):
        for sampler in ('ddim', 'midpoint', 'adaptive'):
            lab = DenoisingLab()
            settings = lab.usual(name, sampler)
            for k, c in controls_of(name, sampler).items():
                ends = () if c.ends is None else (c.ends,) if k == 'interval' else c.ends
                for v in (*c.words, *ends): assert lab.why_not(settings | {k: v}) is None, (k, v)
    assert not {'w', 'negative'} & set(controls_of('ddpm', 'ddim'))
    said = {k for f in LABEL_OPTIONS for k in options_of(f)}         # which no model here can be told
    assert set(controls_of('cfg-fast', 'ddim')) == set(usual_options(mnistgen.load('cfg-fast'),
                                                                     'ddim')) - {'zero_init', *said}

def test_a_slider_has_what_the_model_accepts(monkeypatch):
    "A model that takes scales from 1 to 8 alone, and nothing else of guidance."
    from mnistgen.zoo import guide
    picky = mnistgen.load('cfg-fast')
    plan = picky.plan
    def check(*args, **kw):
        if not 1 <= kw.get('w', 1) <= 8: raise ValueError('w: choose a number from 1 to 8')
        if kw.get('rescale'): raise ValueError('rescale: nothing else of guidance')
        return plan(*args, **kw)
    monkeypatch.setattr(picky, 'plan', check)
    monkeypatch.setattr(guide, '_generator', lambda name: picky)
    controls = controls_of.__wrapped__('picky', 'ddim')
    assert controls['w'].ends == (1, 8) and controls['w'].guides
    assert 'rescale' not in controls and 'momentum' in controls

def test_a_new_option_gets_a_control(monkeypatch):
    "A sampler that somebody adds is offered with its options, and no line is written for it."
    from mnistgen.ddim import sample_ddim
    from mnistgen.lab.options import number, sampler
    monkeypatch.setattr('mnistgen.lab.options.SAMPLERS', SAMPLERS)
    @sampler('pulled')
    def sample_pulled(net, process, x, steps=10, label=None, noise=None, *,
        pull:number(0, 2, symbol='κ')=1. # how far each step goes
    ): yield from sample_ddim(net, process, x, steps, label, noise)
    try:
        control = controls_of('cfg-fast', 'pulled')['pull']
        assert control.ends == (0, 2) and control.label == 'pull κ' and control.usual == 1.
        lab = GuidanceLab()
        drawn = last(lab.draw(lab.usual('cfg-fast', 'pulled') | dict(pull=.5, steps=2)))
        assert drawn.done and "sampler='pulled'" in drawn.line and 'pull=0.5' in drawn.line
    finally: del SAMPLERS['pulled']

def test_what_takes_long_shows_that_it_works(lab):
    "Between the first step and the last there are pictures of x̂0."
    lab.preview = 0.
    *between, end = [d for d in lab.draw(lab.usual('cfg-fast') | dict(steps=20)) if d and d.png]
    assert end.done and between and not any(d.done for d in between)
    assert 'step 1 of 20 …' in between[0].words and between[0].png != end.png

def test_the_way_of_a_digit_is_drawn_once():
    lab = DenoisingLab()
    settings = lab.usual('cfg-fast') | dict(labels=[7], steps=4)
    pictures = [last(lab.draw(settings | dict(at=at))).png for at in range(5)]
    kept = lab.kept[1][0]
    assert len(set(pictures)) == 5 and len(kept) == 4
    assert last(lab.draw(settings | dict(at=99))).png == pictures[-1]
    assert lab.kept[1][0] is kept                        # moving along it draws nothing anew
    last(lab.draw(settings | dict(seed=1)))
    assert lab.kept[1][0] is not kept

# ---- the newest request wins

def test_requests_are_dropped_and_what_takes_long_is_stopped():
    began, shown, go = threading.Event(), [], threading.Event()
    def work(request):
        began.set()
        for step in range(3):
            assert go.wait(30)
            yield (request, step)
    newest = Newest(work, shown.append, patience=0.)
    newest.ask('a')
    assert began.wait(30)
    for request in 'bcd': newest.ask(request)
    go.set()
    newest.wait()
    assert [s for s in shown if s[0] != 'a'] == [('d', 0), ('d', 1), ('d', 2)]
    assert (newest.dropped, newest.stopped) == (2, 1) and ('a', 2) not in shown
    newest.ask('e')                                      # and again, in a new thread
    newest.wait()
    assert shown[-1] == ('e', 2) and newest.thread is None

def test_what_is_quick_is_finished_although_something_waits():
    "Or nothing would be seen as long as a slider moves."
    shown = []
    newest = Newest(lambda request: iter([request]), shown.append, patience=30)
    for i in range(200): newest.ask(i)
    newest.wait()
    assert shown[-1] == 199 and newest.stopped == 0
    assert len(shown) + newest.dropped == 200 and shown == sorted(shown)

def test_an_error_becomes_words_and_the_next_request_is_served():
    shown = []
    def work(request):
        if request == 1: raise FloatingPointError('a sample\nis not a number')
        yield request
    newest = Newest(work, shown.append)
    for i in (1, 2):
        newest.ask(i)
        newest.wait()
    assert shown == [Drawn('FloatingPointError: a sample is not a number', refused=True), 2]

# ---- widgets, without a browser

ipywidgets = pytest.importorskip('ipywidgets')

def settle(panel):
    panel.newest.wait()
    return bytes(panel.image.value)

@pytest.fixture
def panel():
    panel = mnistgen.guidance_lab(n=2, steps=2)
    panel.box
    panel.changed()
    settle(panel)
    return panel

def test_a_slider_changes_the_picture(panel):
    before = settle(panel)
    panel.rows['w'].slider.value = 6.
    assert settle(panel) != before and 'w = 6' in panel.status.value
    assert settle(panel) == last(panel.lab.draw(panel.settings())).png
    assert drawn_by(panel.line.value).shape == (2, 28, 28) and 'w=6.0' in panel.line.value
    panel.reset.click()
    assert settle(panel) == before and panel.rows['w'].value == 1.

def test_nothing_asked_for_nothing_to_guide(panel):
    for d, button in enumerate(panel.digits): button.value = False
    settle(panel)
    assert panel.rows['w'].slider.disabled and not panel.rows['eta'].slider.disabled
    assert 'labels' not in panel.line.value and 'nothing is asked for' in panel.hint.value
    panel.digits[4].value = True
    settle(panel)
    assert not panel.rows['w'].slider.disabled and 'labels=4' in panel.line.value
    assert panel.digits[4].button_style == 'info' and panel.digits[5].button_style == ''

def test_another_model_keeps_what_was_chosen(panel):
    panel.rows['w'].slider.value = 2.5
    panel.digits[0].value = False
    panel.seed.value = 3
    panel.model.value = 'rf-fast'
    settle(panel)
    settings = panel.settings()
    assert (settings['w'], settings['seed'], settings['labels']) == (2.5, 3, [1, 1])
    assert settings['sampler'] == 'midpoint' and 'zero_init' in panel.rows
    panel.sampler.value = 'adaptive'
    settle(panel)
    assert panel.steps.disabled and 'rtol' in panel.rows and panel.rows['w'].value == 2.5
    panel.sampler.value = 'heun'
    settle(panel)
    assert not panel.steps.disabled and 'rtol' not in panel.rows
    assert 'refused' not in panel.status.value and panel.status.value.count('not drawn') == 0

def test_what_does_not_go_together_is_said_and_the_picture_stays(panel):
    before = settle(panel)
    panel.seed.min = -1
    panel.seed.value = -1
    assert settle(panel) == before and 'not drawn: seed -1' in panel.status.value

def test_no_list_of_words_is_blank(panel):
    "Of the value None ipywidgets shows nothing, also where there is an option with that value."
    panel.reset.click()
    settle(panel)
    lists = [r.words for r in panel.rows.values() if r.words is not None]
    assert lists and all(w.index is not None for w in lists)
    assert panel.rows['negative'].words.label == 'none' and panel.rows['negative'].value is None
    other = mnistgen.denoising_lab('ddpm', steps=2)
    other.box
    assert other.digit.label == 'none'

def test_every_control_has_a_name_and_says_what_it_means(panel):
    texts = lambda box: [w.value for w in box.children if isinstance(w, ipywidgets.HTML)]
    boxes = [w for w in panel._box.children if isinstance(w, ipywidgets.HBox)]
    rows = [*boxes, *panel.main.children, *panel.others.children]
    named = [w for box in rows for w in box.children
             if isinstance(w, (ipywidgets.Dropdown, ipywidgets.FloatSlider, ipywidgets.BoundedIntText,
                               ipywidgets.SelectionSlider, ipywidgets.Checkbox))]
    first = {id(box.children[0]) for box in rows}
    assert len(named) > 15 and all(w.description for w in named if id(w) in first)
    for row in panel.rows.values(): assert row.control.option.help in row.control.help
    for box in (*panel.main.children, *panel.others.children): assert len(texts(box)[-1]) > 20

@pytest.mark.parametrize('name', offered())
def test_the_denoising_panel_takes_every_model(name):
    panel = mnistgen.denoising_lab(name, steps=2)
    panel.box
    panel.changed()
    before = settle(panel)
    assert before.startswith(b'\x89PNG') and panel.at.max == 2
    panel.at.value = 1
    assert settle(panel) != before
    assert panel.digit.disabled == (not mnistgen.load(name).labels)

# ---- without a kernel

def test_without_a_kernel_there_are_pictures_drawn_before(run):
    script = '''
import mnistgen
for p in (mnistgen.guidance_lab(steps=2, n=2), mnistgen.denoising_lab(steps=2)):
    bundle = p._repr_mimebundle_()
    assert set(bundle) == {'text/html', 'text/plain'} and 'http' not in bundle['text/html']
    print(bundle['text/html'].count('iVBOR'))
'''
    assert run('-c', script).stdout.split() == ['10', '4']

def test_a_static_export_has_the_panels_without_an_error(run, tmp_path):
    "As nbconvert and Voilà make them: run with a kernel, and nobody who looks."
    notebook(tmp_path)
    run('-m', 'nbconvert', '--to', 'notebook', '--execute', '--inplace', 'panels.ipynb', cwd=tmp_path,
        PYTHONPATH=str(root))
    cells = json.loads((tmp_path/'panels.ipynb').read_text())
    outputs = [o for c in cells['cells'] for o in c['outputs']]
    assert [o['output_type'] for o in outputs] == ['execute_result']*2
    for o in outputs:
        assert base64.b64decode(o['data']['image/png']).startswith(b'\x89PNG')
        assert 'application/vnd.jupyter.widget-view+json' in o['data']
    state = cells['metadata']['widgets']['application/vnd.jupyter.widget-state+json']['state']
    assert sum(w['model_name'] == 'ImageModel' and bool(w['buffers']) for w in state.values()) == 2
    # widgets that VS Code and Voilà bring along: nothing has to be installed there
    assert {w['model_module'] for w in state.values()} == {'@jupyter-widgets/base', '@jupyter-widgets/controls'}
    run('-m', 'nbconvert', '--to', 'html', 'panels.ipynb', cwd=tmp_path)
    assert (tmp_path/'panels.html').stat().st_size > 100_000

# ---- in a browser

ARGUMENTS = ('--no-sandbox --disable-gpu --no-first-run --disable-background-networking '
             '--disable-component-update --disable-sync').split()

def notebook(folder):
    "A small notebook with both panels."
    sources = ['import mnistgen', 'mnistgen.guidance_lab(n=4)', 'mnistgen.denoising_lab(labels=3)']
    cells = [dict(cell_type='code', id=f'cell{i}', execution_count=None, metadata={}, outputs=[],
                  source=s) for i, s in enumerate(sources)]
    kernel = dict(name='python3', display_name='Python 3 (ipykernel)', language='python')
    nb = dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)
    (folder/'panels.ipynb').write_text(json.dumps(nb))

def why_no_browser():
    "In words, what is missing; None if nothing is."
    if not chromium(): return 'no Chromium is installed (Debian and Ubuntu: apt-get install chromium)'
    if not importlib.util.find_spec('playwright'): return 'playwright is not installed'
    if not importlib.util.find_spec('jupyterlab'): return 'JupyterLab is not installed'

def chromium():
    names = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'
    return next(filter(None, map(shutil.which, names)), None)

@pytest.fixture(scope='module')
def browser():
    why = why_no_browser()
    if why and os.environ.get('MNISTGEN_BROWSER') == 'required': pytest.fail(why)
    if why: pytest.skip(why)
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield browser
        browser.close()

@contextlib.contextmanager
def jupyterlab(folder, env):
    "JupyterLab in a folder: its address."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    address = f'http://127.0.0.1:{port}'
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--ip=127.0.0.1', '--allow-root',
               f'--port={port}', '--IdentityProvider.token=', '--ServerApp.password=']
    with open(folder/'log', 'w') as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log,
                                  env=env | dict(PYTHONPATH=str(root)))
        try:
            for _ in range(600):
                assert server.poll() is None, (folder/'log').read_text()
                try: urllib.request.urlopen(f'{address}/api').close()
                except OSError: time.sleep(.2)
                else: break
            yield address
        finally:
            server.terminate()
            server.wait(30)

@pytest.fixture(scope='module')
def page(browser, env, tmp_path_factory):
    "The small notebook in JupyterLab, all its cells run."
    folder = tmp_path_factory.mktemp('jupyter')
    notebook(folder)
    with jupyterlab(folder, env) as address:
        page = browser.new_page(viewport=dict(width=1280, height=1600))
        page.set_default_timeout(120_000)
        page.goto(f'{address}/lab/tree/panels.ipynb?reset')
        page.get_by_text('Python 3 (ipykernel) | Idle').wait_for()
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
        pictures(page).nth(1).wait_for()
        yield page

def pictures(page): return page.locator('img.mnistgen-picture')
def cell(page, i): return page.locator('.jp-CodeCell').nth(i)

def after(page, i, act):
    "What panel i says when its picture has become another one by what is done."
    image = pictures(page).nth(i)
    before = image.get_attribute('src')
    act()
    page.wait_for_function('([e, old]) => e.src != old', arg=[image.element_handle(), before])
    page.wait_for_function('e => e.complete && e.naturalWidth > 0', arg=image.element_handle())
    return cell(page, i + 1).locator('[role=status]')

def errors(page):
    kinds = ('error', 'stderr')
    return [t for k in kinds for t in
            page.locator(f'[data-mime-type="application/vnd.jupyter.{k}"]').all_inner_texts()]

def handle(page, i, name):
    "The handle of a slider of panel i, by its name."
    row = cell(page, i + 1).locator('.widget-slider', has=page.get_by_text(name, exact=True))
    return row.locator('.noUi-handle').first

def test_moving_the_slider_of_guidance_changes_the_picture(page):
    handle(page, 0, 'w').focus()
    says = after(page, 0, lambda: page.keyboard.press('ArrowRight'))
    says.filter(has_text='w = 1.1').wait_for()
    line = cell(page, 1).locator('textarea')
    page.wait_for_function("e => e.value.includes('w=1.1')", arg=line.element_handle())
    assert errors(page) == []

def test_many_moves_end_where_the_slider_is(page):
    "What is out of date is not what is seen at last."
    handle(page, 0, 'w').focus()
    for _ in range(30): page.keyboard.press('ArrowRight')
    value = handle(page, 0, 'w').get_attribute('aria-valuetext')
    cell(page, 1).locator('[role=status]').filter(has_text=f'w = {float(value):g},').wait_for()
    assert errors(page) == []

def test_the_keyboard_is_enough(page):
    "From the first digit on by Tab and Space: the others off, more options on, reset."
    cell(page, 1).get_by_role('button', name='0', exact=True).focus()
    says = after(page, 0, lambda: page.keyboard.press('Space'))
    says.filter(has_text='in 4 of 4').wait_for()
    for _ in range(10): page.keyboard.press('Tab')
    assert page.evaluate("document.activeElement.tagName") == 'SELECT'       # the model
    cell(page, 1).get_by_role('button', name='more options').focus()
    page.keyboard.press('Enter')
    cell(page, 1).get_by_text('rescale', exact=True).wait_for()
    page.keyboard.press('Tab')
    after(page, 0, lambda: page.keyboard.press('Enter')).filter(has_text='w = 1,').wait_for()
    assert cell(page, 1).get_by_role('button', name='0', exact=True).evaluate(
        "e => e.classList.contains('mod-active')")
    assert errors(page) == []

def test_moving_along_the_way_changes_the_picture(page):
    handle(page, 1, 'steps taken').focus()
    for t in (800, 700):
        says = after(page, 1, lambda: page.keyboard.press('ArrowRight'))
        says.filter(has_text=f't = {t}:').wait_for()
    cell(page, 2).locator('select').first.select_option('ddpm')
    cell(page, 2).locator('[role=status]').filter(has_text='η = 1').wait_for()
    assert cell(page, 2).get_by_label('digit').is_disabled()
    assert errors(page) == []

def test_the_pictures_drawn_before_move_without_a_kernel(browser):
    "Two of them in one page, as a published page may have them; no script fails."
    two = [mnistgen.guidance_lab(steps=1, n=1, w=3.), mnistgen.denoising_lab(steps=2)]
    page, wrong = browser.new_page(viewport=dict(width=400, height=800)), []
    page.on('pageerror', lambda e: wrong.append(e))
    page.set_content(''.join(f'<div>{p._repr_mimebundle_()["text/html"]}</div>' for p in two))
    sliders, images = page.locator('input[type=range]'), page.locator('img')
    assert sliders.count() == images.count() == 2
    assert page.locator('output').all_inner_texts() == ['3', 't = 500 (step 0)']
    for i, value in enumerate(('5', 't = 0 (step 1)')):
        before = images.nth(i).get_attribute('src')
        sliders.nth(i).focus()
        page.keyboard.press('ArrowRight')
        assert images.nth(i).get_attribute('src') != before
        assert page.locator('output').nth(i).inner_text() == value
        assert images.nth(i).get_attribute('alt')
    assert page.evaluate('document.documentElement.scrollWidth') <= 400 and wrong == []
    page.close()
