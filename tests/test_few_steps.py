"From fifty steps to one: straight paths, pairs of a teacher, mean velocities, a network that is told the guidance scale, and training from lessons."
import json, math

import numpy as np
import pytest, torch
from conftest import stopped_at
import mnistgen
from mnistgen.beyond.few_steps import (EachGuided, MeanFlow, MeanMLP, Reflow, ScaledMLP, follow, make_pairs, mean_velocity, pack,
                                       sample_mean, straightness, unpack)
from mnistgen.cfg import Guided, LabelMLP
from mnistgen.lab.data import load_images, make_rng
from mnistgen.lab.options import SAMPLERS, refusal
from mnistgen.lab.store import load_checkpoint, read_header
from mnistgen.rectified_flow import Counted, RectifiedFlow
from mnistgen.zoo.cli import main
from mnistgen.zoo.generator import guide

FLOW, SIZE = RectifiedFlow(), dict(width=64, blocks=2, time=16)

@pytest.fixture(scope='module')
def noise(): return torch.randn(12, 2, 4, 4, generator=make_rng('few steps'))

@pytest.fixture(scope='module')
def teacher(): return mnistgen.load('rf-fast', 'cpu', plain=True)

def last(steps):
    for _, x, _ in steps: pass
    return x

def random(net):
    "The network with all weights random, those that begin as zeros too."
    with torch.no_grad():
        for p in net.parameters(): p.copy_(.3*torch.randn(p.shape, generator=make_rng('weights', *p.shape)))
    return net

# ---- straightness

def test_a_straight_field_has_straightness_0(noise):
    "One direction everywhere; and all paths to one point, where the velocity differs from place to place but not along a path."
    for field in (lambda x, t, label=None: torch.full_like(x, 3.), lambda x, t, label=None: x/(t/1000).view(-1, 1, 1, 1)):
        assert straightness(field, FLOW, noise) < 1e-6

def test_the_straightness_of_a_gaussian_is_the_integral(noise):
    "Images N(0, s²): a path is noise times σ(t), so S = E|noise|²·∫(σ' - (1 - s))² dt."
    s = .3
    σ = lambda t: math.sqrt((1 - t)**2*s**2 + t**2)
    slope = lambda t: (t - (1 - t)*s**2)/σ(t)
    field = lambda x, t, label=None: x*(slope(t[0].item()/1000)/σ(t[0].item()/1000))
    times = (np.arange(20_000) + .5)/20_000
    integral = np.mean([(slope(t) - (1 - s))**2 for t in times])
    exact = noise.flatten(1).square().sum(1).mean().item()*integral
    assert abs(straightness(field, FLOW, noise, steps=400)/exact - 1) < .03

# ---- pairs

def test_pairs_are_what_the_teacher_makes_of_their_noise(teacher, noise):
    "Each at its own scale, as the sampler and `Guided` do it; and back from there to the noise."
    label, w = torch.arange(12) % 10, torch.tensor([1., 1., 2., 5.]*3)
    ends = follow(teacher.net, teacher.process, noise, label, w, 8)
    for scale in (1., 2., 5.):
        i = (w == scale).nonzero().flatten()
        asked = Guided(teacher.net, teacher.process, w=scale), teacher.process, noise[i], 8, label[i]
        assert (last(SAMPLERS['rk4'](*asked)) - ends[i]).abs().max() < 1e-4
    there = follow(teacher.net, teacher.process, ends, label, w, 32, back=True)
    assert (there - noise)[w == 1].square().mean().sqrt() < .02     # guidance contracts: the way back from there magnifies errors

def test_stored_pairs_hold_for_finer_steps(teacher):
    "Noise to latent with twice the steps: the same within the deviation of the autoencoder's posterior; real latents stand as they are."
    data = load_images(split='test')
    real = teacher.space.encode_data(data)[:300]
    pairs, label = make_pairs(teacher.net, teacher.process, real, data.labels[:300], 120, seed=3, guided=.5, inverted=.3)
    x0, ε, w = unpack(pairs, (2, 4, 4))
    assert pack(x0, ε, w).equal(pairs) and label.min() == -1
    is_real = (x0[:, None] == real).flatten(2).all(2).any(1)
    assert .15 < is_real.float().mean() < .45 and (w[is_real] == 1).all() and (w[label < 0] == 1).all() and (w > 2).any()
    finer = follow(teacher.net, teacher.process, ε, label, w, 16)
    assert (finer - x0)[~is_real].square().mean().sqrt() < .02
    assert abs(ε[is_real].std() - 1) < .1                            # the noise that real images come from is noise
    again, _ = make_pairs(teacher.net, teacher.process, real, data.labels[:300], 120, seed=3, guided=.5, inverted=.3)
    assert again.equal(pairs)

def test_a_scale_of_1_costs_one_evaluation(noise):
    net = Counted(random(LabelMLP(**SIZE)))
    label, w = torch.arange(12) % 10, torch.tensor([1., 1., 1., 3.]*3)
    with torch.no_grad(): answers = EachGuided(net, w)(noise, torch.full((12,), 500.), label)
    assert net.rows == 15
    with torch.no_grad(): c, u = net(noise, torch.full((12,), 500.), label), net(noise, torch.full((12,), 500.))
    assert (answers - (u + w.view(-1, 1, 1, 1)*(c - u))).abs().max() < 1e-4

# ---- mean velocities

def test_the_identity_of_mean_velocities_in_a_closed_form(noise):
    "Images N(0, s²): u is (z_t - z_r)/(t - r), and u = v - (t - r)·du/dt at all times."
    s, z = .5, noise.double()
    σ = lambda t: ((1 - t)**2*s**2 + t**2).sqrt().view(-1, 1, 1, 1)
    u_known = lambda z, t, label=None, w=None, r=None: z*(1 - σ(r/1000)/σ(t/1000))/((t - r)/1000).view(-1, 1, 1, 1)
    for low, high in ((0., 1.), (.2, .3), (.5, .95)):
        t, r = [torch.full((12,), time, dtype=torch.float64) for time in (high, low)]
        v = z*(t - (1 - t)*s**2).view(-1, 1, 1, 1)/σ(t)**2
        u, slope = mean_velocity(u_known, z, t, r, v)
        assert (u - (v - (high - low)*slope)).abs().max() < 1e-9
    ones = lambda z, t, label=None, w=None, r=None: u_known(z, t, r=r)
    ended = last(sample_mean(ones, FLOW, noise, 1))
    assert (ended - s*noise).abs().max() < 1e-5                      # one step is exact

@pytest.mark.parametrize('smooth', [True, False])
def test_jvp_is_the_finite_difference(smooth, noise):
    net = random(MeanMLP(smooth=smooth, **SIZE)).double()
    if not smooth: net.time.forward = lambda t: _embedded(net.time, t)
    z, v = noise.double(), torch.randn(noise.shape, generator=make_rng('v')).double()
    t, r, label = torch.linspace(.3, .99, 12).double(), torch.linspace(0, .3, 12).double(), torch.arange(12) % 10
    w = torch.linspace(1, 8, 12).double()
    _, slope = mean_velocity(net, z, t, r, v, label, w)
    at = lambda h: net(z + h*v, 1000*(t + h), label, w=w, r=1000*r)
    with torch.no_grad(): difference = (at(1e-6) - at(-1e-6))/2e-6
    assert (slope - difference).abs().max() < 1e-4*slope.abs().max()

def _embedded(embed, t):
    "The time embedding in double precision."
    ω = torch.exp(torch.arange(embed.dim//2).double()*(-2*math.log(10000)/embed.dim))
    angle = t[:, None]*ω
    γ = torch.cat([angle.cos(), angle.sin()], 1)
    silu = torch.nn.functional.silu
    return silu(embed.lin2(silu(embed.lin1(γ))))

@pytest.mark.parametrize('improved', [True, False])
def test_mean_flow_learns_by_gradients_that_are_finite(improved, noise):
    "And where r = t the loss is that of the velocity."
    net, label = random(MeanMLP(**SIZE)), torch.arange(12) % 10
    label[::4] = -1
    MeanFlow(improved=improved).loss(net, (noise, label), make_rng('loss')).backward()
    grads = {k: p.grad for k, p in net.named_parameters()}
    assert all(g is not None and g.isfinite().all() for k, g in grads.items() if improved or 'by_scale' not in k)
    t, errors = MeanFlow(improved=False, same=1., power=0.).losses(net, (noise, label), make_rng('loss'))
    rng = make_rng('loss')
    flow = MeanFlow(improved=False)
    times = torch.maximum(flow.random_times(12, rng), flow.random_times(12, rng))
    torch.rand(12, 2, generator=rng)
    ε = torch.randn(noise.shape, generator=rng)
    v = net(flow.add_noise(noise, times, ε), 1000*times, label)
    assert t.equal(times) and torch.allclose(errors, (v - (ε - noise)).square().flatten(1).sum(1), rtol=1e-4)

# ---- the scale as an input

@pytest.mark.parametrize('kind', [ScaledMLP, MeanMLP])
def test_with_the_weights_of_a_teacher_it_begins_as_the_teacher(kind, teacher, noise):
    net, t, label = kind(**teacher.net.config, **({'smooth': False} if kind is MeanMLP else {})), torch.linspace(1, 1000, 12), torch.arange(12) - 2
    label = label.clamp(min=-1)
    net.start_as(teacher.net)
    with torch.no_grad():
        for w in (None, 1., 4.): assert net(noise, t, label, w=w).equal(teacher.net(noise, t, label))
    assert 'do not fit' in refusal(kind(**SIZE).start_as, teacher.net)

def test_after_training_a_scale_of_1_is_no_scale(noise):
    g = mnistgen.load('one-step', 'cpu', plain=True)
    t, label = torch.full((12,), 1000.), torch.arange(12) % 10
    with torch.no_grad():
        plain, told, strong = [g.net(noise, t, label, w=w) for w in (None, torch.ones(12), 4.)]
    assert plain.equal(told) and (strong - plain).abs().mean() > .05
    torch.func.jvp(lambda x: g.net(x, t, label, w=2.), (noise,), (noise,))         # nothing of the engine is in the way

def test_the_scale_is_told_and_not_computed():
    "One evaluation at any scale, with any sampler; and it matters."
    g = mnistgen.load('one-step', 'cpu')
    for w in (1., 3., 8.): assert g.evaluations(2, 7, w=w) == 1
    assert g.evaluations(2, 7, w=3., sampler='midpoint', steps=2) == 4 and g.evaluations(2) == 1
    images = {w: g.sample(4, 7, w=w, seed=1) for w in (None, 1., 6.)}
    assert images[None].equal(images[1.]) and (images[6.] - images[1.]).abs().mean() > .005
    assert isinstance(guide(mnistgen.load('rf-fast', 'cpu').net, FLOW, w=3.), Guided)
    assert str(g.plan(2, 7, w=3.).sampling) == 'Euler-1, w = 3'

@pytest.mark.parametrize('flags, words', [
    ('--labels 7 --w 9', 'w 9.0: choose a number from 1 to 8'), ('--labels 7 --w 0.5', 'w 0.5: choose a number from 1 to 8'),
    ('--labels 7 --w nan', 'w nan: choose a number'), ('--w 2', 'none are given'),
    ('--labels 7 --interval 100,800', 'leave interval out'), ('--labels 7 --negative 3 --rescale 0.5', 'leave negative and rescale out'),
    ('--labels 7 --steps 0', 'steps 0: choose an integer'), ('--labels 7 --steps 1.5', 'steps'), ('--labels 11', 'choose digits from 0 to 9')])
def test_what_the_model_does_not_know_is_refused_in_a_line(flags, words, tmp_path, capsys):
    assert main(f'sample one-step {flags} --out {tmp_path}/a.npy'.split()) == 2
    said = capsys.readouterr().err
    assert words in said and said.count('\n') == 1 and not (tmp_path/'a.npy').exists()

@pytest.mark.parametrize('kw, words', [(dict(w=9.), '1 to 8'), (dict(w=.9), '1 to 8'), (dict(w='much'), 'choose a number'), (dict(steps=0), 'steps 0'),
                                       (dict(steps=2.5), 'steps 2.5'), (dict(bound=1.), 'leave bound out'), (dict(zero_star=True), 'leave zero_star out')])
def test_python_says_the_same(kw, words):
    g = mnistgen.load('one-step', 'cpu')
    for call in (g.sample, g.plan, g.stream, g.evaluations): assert words in refusal(call, 2, 7, **kw)

def test_digits_at_once(tmp_path, capsys):
    "The same arguments, the same bytes; and a digit is the one that was asked for."
    for name in 'ab': assert main(f'sample one-step --labels 7 --n 4 --w 3 --out {tmp_path}/{name}.npy'.split()) == 0
    assert 'Euler-1, w = 3' in capsys.readouterr().out and (tmp_path/'a.npy').read_bytes() == (tmp_path/'b.npy').read_bytes()
    from mnistgen.zoo.evaluation import get_judge
    digits = torch.arange(10).repeat(10)
    seen = get_judge().assess(mnistgen.load('one-step', 'cpu').sample(100, digits, w=2.))
    assert (seen.digits == digits).float().mean() >= .98

# ---- training from a teacher

LINE = 'train one-step --limit 320 --epochs 2 --batch-size 64 --device cpu --plain'

def test_it_trains_and_resumes_to_the_same_bits(tmp_path, capsys, monkeypatch):
    "The teacher's pairs are made once, kept with its checksum, and read back; a killed run goes on."
    assert main(f'{LINE} --out {tmp_path}/whole'.split()) == 0
    kept = sorted((tmp_path/'lessons').iterdir())
    assert len(kept) == 2 and all(read_header(f)['teacher'] == read_header('mnistgen/weights/rf-fast.safetensors')['checksum'] for f in kept)
    from mnistgen.beyond import few_steps
    def never(*_, **__): raise AssertionError('the pairs are there')
    monkeypatch.setattr(few_steps, 'make_pairs', never)
    with stopped_at(7):
        assert main(f'{LINE} --out {tmp_path}/run'.split()) == 130
    assert main(f'{LINE} --resume --out {tmp_path}/run'.split()) == 0
    (a, _), (b, _) = [load_checkpoint(tmp_path/f/'state.safetensors') for f in ('whole', 'run')]
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)
    record = json.loads((tmp_path/'run/one-step.json').read_text())
    assert record['data']['images'] == 320 and record['teacher']['name'] == 'rf-fast'
    assert record['history'][-1]['eval_loss'] < record['history'][0]['eval_loss']
    g = mnistgen.load(tmp_path/'run/one-step.safetensors', 'cpu')
    assert g.sample(2, [3, 4], w=2.).isfinite().all()

def test_other_lessons_are_refused(tmp_path, capsys):
    assert main(f'{LINE} --data fashion-mnist --out {tmp_path}/a'.split()) == 2
    assert "it learns from the model 'rf-fast'" in capsys.readouterr().err
    assert main(f'{LINE} --autoencoder vae-light --out {tmp_path}/a'.split()) == 2
    said = capsys.readouterr().err
    assert "not the latents that the teacher of 'one-step' has learned: choose vae" in said and said.count('\n') == 1

def test_a_small_autoencoder_reads_the_latents_of_another(tmp_path):
    "It has the other's scale, and what knows the other's latents may take it in its place."
    assert main(f'train vae-tiny --limit 128 --epochs 1 --device cpu --out {tmp_path}/tiny'.split()) == 0
    tiny, vae = mnistgen.load(tmp_path/'tiny/vae-tiny.safetensors', 'cpu'), mnistgen.load('vae', 'cpu')
    assert tiny.scale == vae.scale and tiny.header['reads'] == vae.header['checksum'] and tiny.shape == vae.shape
    assert main(f'train one-step --limit 64 --epochs 1 --batch-size 32 --device cpu --autoencoder {tmp_path}/tiny/vae-tiny.safetensors --out {tmp_path}/run'.split()) == 0
    g = mnistgen.load(tmp_path/'run/one-step.safetensors', 'cpu', autoencoder=tmp_path/'tiny/vae-tiny.safetensors')
    assert g.sample(2, 7).shape == (2, 1, 28, 28) and g.space.scale == vae.scale
    other = mnistgen.load('vae-tiny', 'cpu')
    x = load_images(split='test').pixels[:200]
    assert (other.encode(x) - vae.encode(x)).square().mean() < .1 and (other.decode(vae.encode(x))[:, 0] - x/255).square().mean() < .005

def test_one_autoencoder_may_stand_for_the_other():
    "`vae` and the one that reads its latents; no other, which is said in a line."
    for name, decoder in (('one-step', 'vae'), ('rf-fast', 'vae-tiny')):
        images = [mnistgen.load(name, 'cpu', autoencoder=a).sample(4, 3, seed=2) for a in ('vae', 'vae-tiny')]
        assert 0 < (images[0] - images[1]).square().mean() < .01, decoder
        assert 'another autoencoder' in refusal(mnistgen.load, name, 'cpu', autoencoder='vae-light')
