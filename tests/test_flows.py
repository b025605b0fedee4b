"Rectified flow and the solvers: closed forms, orders, the reference's schedulers, steps that fit each sample, command lines, and training that is stopped and resumed."
import copy, json, math

import numpy as np
import pytest, torch
from conftest import stopped_at
import mnistgen
from mnistgen.cfg import Guided
from mnistgen.ddpm import DDPM
from mnistgen.lab.data import make_rng
from mnistgen.lab.options import SAMPLERS, refusal
from mnistgen.lab.store import load_checkpoint
from mnistgen.rectified_flow import Counted, ProbabilityFlow, RectifiedFlow, sample_adaptive
from mnistgen.zoo.cli import main

FIXED = {'euler': (1, 1), 'midpoint': (2, 2), 'heun': (2, 2), 'rk4': (4, 4), 'dpm++': (1, 2), 'unipc': (1, 2), 'ddim': (1, 1)}     # evaluations a step, order
PROCESSES = {'flow': RectifiedFlow(), 'cosine, v': DDPM(predict='v', clip=False), 'linear, v': DDPM(schedule='linear', predict='v', clip=False),
             'cosine, x0': DDPM(predict='x0', clip=False), 'flow, x0': RectifiedFlow(predict='x0'), 'flow, v': RectifiedFlow(predict='v')}

def last(steps):
    for _, x, _ in steps: pass
    return x

def toy(x, t, label=None): return x*(t/1000).view(-1, 1, 1, 1) - .3*x.tanh()

def gaussian(process, std=.5):
    "The network that knows the answer for images of independent normal numbers: E(x0 | x) is x times a number."
    def net(x, t, label=None):
        a, b = process.levels(process.time_of(t))
        variance = a**2*std**2 + b**2
        return process.target(x*a*std**2/variance, x*b/variance, process.time_of(t))
    return net

def two_modes(process, m=.8, std=.2):
    "The same for numbers near -m and m: E(x0 | x) bends, each number at its own time."
    def net(x, t, label=None):
        t = process.time_of(t)
        a, b = process.levels(t)
        variance = a**2*std**2 + b**2
        x0_hat = m*(a*m*x/variance).tanh()*b**2/variance + a*std**2*x/variance
        return process.target(x0_hat, (x - a*x0_hat)/b, t)
    return net

@pytest.fixture(scope='module')
def x(): return torch.randn(4, 2, 4, 4, generator=make_rng('flows'))

# ---- closed forms and orders

@pytest.mark.parametrize('name', PROCESSES)
@pytest.mark.parametrize('sampler', FIXED)
def test_normal_images_are_reached_in_the_limit(sampler, name, x):
    "The flow of a normal distribution only stretches: noise ends as noise times the standard deviation of the images."
    process = PROCESSES[name]
    steps = 1000//FIXED[sampler][0] if sampler in ('euler', 'ddim') else 100
    got = last(SAMPLERS[sampler](gaussian(process), process, x, steps, spacing='trailing'))
    assert (got - .5*x).abs().max() < .02*x.abs().max()

@pytest.mark.parametrize('name', ['flow', 'cosine, v'])
@pytest.mark.parametrize('sampler', FIXED)
def test_the_error_falls_with_the_order(sampler, name, x):
    "Between a/b = e^-2 and e^2, eight times the steps divide the error by 8 to the power of the order."
    process, order = copy.copy(PROCESSES[name]), FIXED[sampler][1]
    spread = lambda t: math.hypot(.5*process.levels(t)[0], process.levels(t)[1])
    def error(n):
        times = [process.time_at(1/(1 + math.exp(4*i/n - 2))) for i in range(n + 1)]
        process.path = lambda *_: list(zip(times, times[1:]))
        got = last(SAMPLERS[sampler](gaussian(process), process, x, n))
        return (got - spread(times[-1])/spread(times[0])*x).abs().max().item()
    few = {1: 16, 2: 16, 4: 1}[order]
    assert .9*order < math.log(error(few)/error(8*few), 8) < 1.6*order

def test_evaluations_are_what_the_tables_say(x):
    for name, (each, _) in FIXED.items():
        for steps in (1, 7):
            net = Counted(toy)
            last(SAMPLERS[name](net, RectifiedFlow(), x, steps))
            assert net.evaluations(len(x)) == each*steps - (name == 'rk4'), name

# ---- the reference

@pytest.mark.parametrize('steps', [1, 10, 50])
def test_euler_is_diffusers_flow_matching(steps, x):
    diffusers = pytest.importorskip('diffusers')
    s = diffusers.FlowMatchEulerDiscreteScheduler()
    s.set_timesteps(sigmas=np.linspace(1, 1/steps, steps).tolist())
    theirs = x
    for t in s.timesteps: theirs = s.step(toy(theirs, t.expand(len(x))), t, theirs).prev_sample
    ours = last(SAMPLERS['euler'](toy, RectifiedFlow(), x, steps))
    assert (ours - theirs).abs().max() < 1e-5

def test_the_sum_that_diffusers_pins():
    "The toy network and the input of diffusers' own tests, ten steps: 133.3620."
    x = (torch.arange(768.).reshape(3, 8, 8, 4)/768).permute(3, 0, 1, 2)
    diffusers = pytest.importorskip('diffusers')
    s = diffusers.FlowMatchEulerDiscreteScheduler()
    s.set_timesteps(10)
    net = lambda x, t, label=None: x*(t/(t + 1)).view(-1, 1, 1, 1)
    theirs, ours, flow = x, x, RectifiedFlow()
    for t in s.timesteps: theirs = s.step(net(theirs, t.expand(len(x))), t, theirs).prev_sample
    σs = s.sigmas.tolist()
    flow.path = lambda steps, spacing: list(zip(σs, σs[1:]))
    ours = last(SAMPLERS['euler'](net, flow, x, 10))
    assert abs(theirs.abs().sum().item() - 133.3620) < 1e-2 and abs(ours.abs().sum().item() - 133.3620) < 1e-2

@pytest.mark.parametrize('steps', [1, 2, 10, 50])
@pytest.mark.parametrize('predict, named', [('v', 'v_prediction'), ('x0', 'sample'), ('eps', 'epsilon')])
@pytest.mark.parametrize('sampler, scheduler', [('dpm++', 'DPMSolverMultistepScheduler'), ('unipc', 'UniPCMultistepScheduler')])
def test_multistep_solvers_are_diffusers(sampler, scheduler, steps, predict, named, x):
    diffusers = pytest.importorskip('diffusers')
    s = getattr(diffusers, scheduler)(beta_schedule='squaredcos_cap_v2', prediction_type=named, timestep_spacing='trailing', solver_order=2)
    process = DDPM(predict=predict, clip=False)
    s.alphas_cumprod = process.ᾱ[:-1]
    s.set_timesteps(steps)
    assert s.timesteps.tolist() == [t for t, _ in process.path(steps, 'trailing')]
    net = toy if predict != 'eps' else lambda x, t, label=None: x*(.9 + .1*(t/1000).view(-1, 1, 1, 1))        # bounded at high noise
    theirs = x
    for t in s.timesteps: theirs = s.step(net(theirs, t.expand(len(x))), t, theirs).prev_sample
    ours = last(SAMPLERS[sampler](net, process, x, steps, spacing='trailing'))
    assert (ours - theirs).abs().max() < 2e-4*theirs.abs().max()

@pytest.mark.parametrize('process', [RectifiedFlow(), DDPM(predict='v', clip=False)], ids=['flow', 'diffusion'])
def test_dpm_solver_is_the_formula_in_sigma(process, x):
    "In y = x/a and σ = b/a, as k-diffusion has it; the first step of a flow, from σ = ∞, begins at the mean."
    path = process.path(12, 'log-snr')
    (a, b), before, h_before = process.levels(path[0][0]), None, None
    ours = last(SAMPLERS['dpm++'](toy, process, x, 12, spacing='log-snr'))
    theirs = x
    for t, s in path:
        (a, b), (a_s, b_s) = process.levels(t), process.levels(s)
        D, _ = process.denoise(toy, theirs, t)
        if not a or not b_s: theirs, h = a_s*D + b_s*theirs if not a else a_s*D, math.inf
        else:
            y, h = theirs/a, math.log(b/a) - math.log(b_s/a_s)
            r = math.inf if before is None else h_before/h
            mixed = D if before is None or r == math.inf else (1 + 1/(2*r))*D - before/(2*r)
            theirs = a_s*((b_s/a_s)/(b/a)*y - math.expm1(-h)*mixed)
        before, h_before = D, h
    assert (ours - theirs).abs().max() < 1e-4

# ---- one thing, two schedules

def test_euler_is_ddim_for_every_process(x):
    for process in PROCESSES.values():
        for spacing in ('trailing', 'leading', .7, 'log-snr'):
            euler, ddim = [last(SAMPLERS[k](toy, process, x, 20, spacing=spacing)) for k in ('euler', 'ddim')]
            assert (euler - ddim).abs().max() < 1e-4*ddim.abs().max()

def test_a_diffusion_model_is_a_flow_in_other_units():
    "The velocity at τ is that of the process, whatever it predicts; and fresh noise goes with a flow as well."
    x0, ε = torch.randn(2, 6, 1, 4, 4, generator=make_rng('units'))
    for process in (*PROCESSES.values(), DDPM(clip=False)):
        for τ in (.1, .5, .9):
            t = process.time_at(τ)
            net = lambda x, t, label=None: process.target(x0, ε, process.time_of(t))
            v, x0_hat = ProbabilityFlow(net, process)((1 - τ)*x0 + τ*ε, τ)
            assert (v - (ε - x0)).abs().max() < 1e-3 and (x0_hat - x0).abs().max() < 1e-3
    flow = RectifiedFlow()
    many, noise = torch.randn(800, 1, 2, 2, generator=make_rng('many')), lambda x: torch.randn(x.shape, generator=rng)
    for sampler, options in (('ddim', dict(eta=1.)), ('ddpm', {})):
        rng = make_rng('fresh')
        assert abs(last(SAMPLERS[sampler](gaussian(flow), flow, many, 200, noise=noise, **options)).std().item() - .5) < .02

# ---- steps that fit

def hard(x, t, label=None):
    "Samples with a large first number have a hard way."
    first = x[:, :1, :1, :1]
    return x*(1 + 5*torch.sin(t.view(-1, 1, 1, 1)/30 + first)*(first > 0))

def test_each_sample_has_its_own_steps(x):
    "A sample is the same alone and among others, to the last bit; and easy ones are done sooner."
    flow = RectifiedFlow()
    together = last(sample_adaptive(hard, flow, x))
    alone, costs = [], []
    for i in range(len(x)):
        net = Counted(hard)
        alone.append(last(sample_adaptive(net, flow, x[i:i + 1])))
        costs.append(net.evaluations(1))
    assert torch.cat(alone).equal(together) and max(costs) > 1.5*min(costs)
    net = Counted(hard)
    last(sample_adaptive(net, flow, x))
    assert net.evaluations(len(x)) == sum(costs)/len(costs)

@pytest.mark.parametrize('process', PROCESSES.values(), ids=PROCESSES)
def test_the_tolerance_is_kept(process, x):
    "Against fixed steps of order 4, many of them; a smaller tolerance costs more evaluations and makes a smaller error."
    exact = last(SAMPLERS['rk4'](two_modes(process), process, x, 250, spacing='trailing'))
    errors, costs, tolerances = [], [], (1e-1, 1e-2, 1e-3, 1e-4)
    for tol in tolerances:
        net = Counted(two_modes(process))
        errors.append((last(sample_adaptive(net, process, x, rtol=tol, atol=tol)) - exact).abs().max().item())
        costs.append(net.evaluations(len(x)))
    assert all(e < 25*tol for e, tol in zip(errors, tolerances)), errors       # a way that parts in two magnifies errors
    assert costs == sorted(costs) and costs[-1] > costs[0] and errors[-1] < errors[0]

def test_the_pair_is_that_of_torchdiffeq(x):
    "One sample, the same tolerance: the same end to within it, for about as many evaluations."
    odeint = pytest.importorskip('torchdiffeq').odeint
    flow, one = RectifiedFlow(), x[:1]
    for tol in (1e-2, 1e-3):
        net = Counted(hard)
        ours = last(sample_adaptive(net, flow, one, rtol=tol, atol=tol))
        calls = []
        def velocity(τ, z):
            calls.append(τ)
            return hard(z, 1000*τ.float().expand(1))
        theirs = odeint(velocity, one, torch.tensor([1., 0.]), rtol=tol, atol=tol, method='dopri5')[-1]
        best = odeint(velocity, one, torch.tensor([1., 0.]), rtol=1e-6, atol=1e-7, method='dopri5')[-1]
        assert (ours - best).abs().max() < 20*tol and (theirs - best).abs().max() < 20*tol
        assert net.evaluations(1) < 2*len(calls)

# ---- guidance

@pytest.mark.parametrize('w', [0., 1., 3., 10.])
@pytest.mark.parametrize('sampler', FIXED)
def test_guidance_narrows_a_flow_as_it_does_a_diffusion_model(sampler, w, x):
    "Images N(0, 1) with a label, N(0, 2) without: guided by w, noise ends as noise times the root of 2^(1 - w) (05_cfg)."
    process = RectifiedFlow()
    def net(x, t, label=None):
        variance = torch.where(label < 0, 2., 1.).view(-1, 1, 1, 1)
        a, b = process.levels(process.time_of(t))
        share = 1/(a**2*variance + b**2)
        return process.target(x*a*variance*share, x*b*share, process.time_of(t))
    steps = {1: 1000, 2: 200, 4: 100}[FIXED[sampler][1]]
    got = last(SAMPLERS[sampler](Guided(net, process, w=w), process, x, steps, torch.arange(4), spacing='trailing'))
    assert (got/x/2**((1 - w)/2) - 1).abs().max() < .05

# ---- what is refused

@pytest.mark.parametrize('flags, words', [
    ('--sampler midpoint --steps 0', 'steps 0: choose an integer from 1 to 1000'),
    ('--sampler heun --steps 2.5', 'steps'),
    ('--sampler rk4 --eta 1', "eta belongs to the sampler ddim, not to 'rk4'"),
    ('--sampler euler --rtol 0.1', "rtol belongs to the sampler adaptive, not to 'euler'"),
    ('--sampler adaptive --steps 5', 'chooses its own steps'),
    ('--sampler adaptive --rtol 0', 'rtol 0: choose a number of at least 1e-06'),
    ('--sampler adaptive --atol nan', 'atol nan: choose a number of at least 1e-06'),
    ('--sampler dpm++ --spacing even', 'leading, trailing, log-snr or a positive number'),
    ('--sampler plms', "unknown sampler 'plms': choose ddpm")])
def test_what_makes_no_sense_is_refused_in_a_line(flags, words, tmp_path, capsys):
    assert main(f'sample ldm-fast {flags} --out {tmp_path}/a.npy'.split()) == 2
    said = capsys.readouterr().err
    assert words in said and said.count('\n') == 1 and not (tmp_path/'a.npy').exists()

def test_what_has_no_velocity_is_refused(tmp_path, capsys):
    "CFG++ takes its image from one answer and its noise from another."
    for sampler in ('midpoint', 'dpm++', 'unipc', 'adaptive'):
        assert main(f'sample cfg-fast --labels 7 --sampler {sampler} --w 0.5 --renoise unguided --out {tmp_path}/a.npy'.split()) == 2
        assert 'renoise unguided: goes with ddim alone' in capsys.readouterr().err

def test_the_smallest_tolerance_comes_to_an_end(x):
    net = Counted(toy)
    z = last(sample_adaptive(net, RectifiedFlow(), x, rtol=1e-6, atol=1e-6))
    assert net.evaluations(len(x)) < 2000 and (z - last(SAMPLERS['rk4'](toy, RectifiedFlow(), x, 250))).abs().max() < 1e-4

def test_zero_init_is_for_flows(tmp_path, capsys):
    assert main(f'sample cfg-fast --labels 7 --zero-init 0.1 --out {tmp_path}/a.npy'.split()) == 2
    assert 'velocity' in capsys.readouterr().err

@pytest.mark.parametrize('flags, words', [('--sampler midpoint --steps 4', 'Midpoint-4'), ('--sampler dpm++', 'DPM++(2M)-20'), ('--sampler unipc --steps 6', 'UniPC-6'),
                                          ('--sampler adaptive --rtol 0.1', 'Dormand-Prince, rtol = 0.1')])
def test_solvers_on_the_command_line(flags, words, tmp_path, capsys):
    for name in 'ab': assert main(f'sample ldm-fast --n 4 {flags} --out {tmp_path}/{name}.npy'.split()) == 0
    assert words in capsys.readouterr().out
    assert (tmp_path/'a.npy').read_bytes() == (tmp_path/'b.npy').read_bytes()

# ---- training

@pytest.mark.parametrize('model', ['rf', 'rf-latent', 'rf-fast'])
def test_a_flow_trains_resumes_and_draws(model, tmp_path, capsys):
    "Interrupted and resumed, a run ends at the same bits; its weights are asked for a velocity."
    size = {'rf': '--limit 48 --epochs 2 --batch-size 16', 'rf-latent': '--limit 128 --epochs 2 --batch-size 32'}.get(model, '--limit 320 --epochs 2 --batch-size 64')
    line = f'train {model} {size} --device cpu --plain'
    assert main(f'{line} --out {tmp_path}/whole'.split()) == 0
    with stopped_at(4):
        assert main(f'{line} --out {tmp_path}/run'.split()) == 130
    assert main(f'{line} --resume --out {tmp_path}/run'.split()) == 0
    (a, _), (b, _) = [load_checkpoint(tmp_path/f/'state.safetensors') for f in ('whole', 'run')]
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)
    g = mnistgen.load(tmp_path/f'run/{model}.safetensors', 'cpu')
    assert isinstance(g.process, RectifiedFlow) and g.process.predict == 'velocity'
    labels = range(2) if g.labels else None
    assert g.sample(2, labels, sampler='midpoint', steps=2).isfinite().all()
    record = json.loads((tmp_path/f'run/{model}.json').read_text())
    assert record['process_config']['times'] == 'logit-normal' and record['history'][-1]['train_loss'] < 3

def test_the_coupling_is_trained_with(tmp_path):
    "Pairs that are near make another loss; the classes are those of the batch."
    from mnistgen.ddpm import COUPLINGS
    x0, label = torch.randn(64, 2, 4, 4, generator=make_rng('pairs')), torch.arange(64) % 4
    near, far = [RectifiedFlow(coupling=c).losses(lambda x, t, label: torch.zeros_like(x), (x0, label), make_rng('same'))[1].mean() for c in ('transport', 'independent')]
    assert near < .9*far
    assert "choose independent" in refusal(RectifiedFlow, coupling='nearest') and 'transport' in COUPLINGS
