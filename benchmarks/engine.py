"""How fast the engine is, side by side with diffusers: `python benchmarks/engine.py`.

Takes about 20 minutes on 2 cores, which should have nothing else to do. Every measurement runs in
a process of its own, so that no contender profits from another's settings. The contenders:

- eager:    diffusers as its documentation teaches it, float32
- best:     diffusers with bfloat16 autocast, torch.compile, channels last and a fused optimiser
- mnistgen: this library as it comes

All have the same architecture, batch and optimiser. Prints tables, writes
results/benchmark-engine.json. `--only WORD` repeats some rows of it. `--quick` tells about your own
machine in less than four minutes: a few rows, without the contender that takes minutes to compile,
printed and not stored."""
import argparse, contextlib, json, os, resource, subprocess, sys, tempfile, time
from pathlib import Path

top = Path(__file__).resolve().parent.parent
CONTENDERS = 'eager', 'best', 'mnistgen'

def images(n): return f'{n} image{"s"[:n > 1]}'

TRAINING = {
    'train pixel, batch 128': ('pixel', 128),
    'train latent, batch 128': ('latent', 128),
    'train latent, batch 512': ('latent', 512),
    'train vae, batch 128': ('vae', 128),
}
SAMPLING = {'DDPM-1000, 10 images': ('ddpm', 1000, 10)}
SAMPLING |= {f'DDIM-{steps}, {images(n)}': ('ddim', steps, n)
             for steps in (100, 50) for n in (1, 10, 256)}
LATENT = {f'latent DDIM-100, {images(n)}': ('ddim', 100, n) for n in (1, 10, 256)}   # and decoded
DECODING = {f'decode {n} latents': n for n in (10, 250)}
MEMORY = 'memory, 1000 images'                       # as DDIM, three steps of it
COLD = 'from nothing to 10 images, DDIM-50'          # start of Python, import, load, compilation
WORKS = *TRAINING, *SAMPLING, *LATENT, *DECODING, MEMORY, COLD
QUICK = ('train pixel, batch 128', 'train latent, batch 512', 'train vae, batch 128',
         'DDIM-50, 1 image', 'DDIM-50, 10 images', 'latent DDIM-100, 10 images')
BETA = 1e-5                                          # of the nats, in the loss of the autoencoder
CONFIG = dict(pixel=dict(channels=(32, 64, 96, 96)),
              latent=dict(channels=(64, 128), in_channels=2, out_channels=2, pad_to=8))

# ---- in a worker: build a contender, return a function that does the work once

def half(contender):
    import torch
    if contender != 'best': return contextlib.nullcontext()
    return torch.autocast('cpu', torch.bfloat16)

def autoencoder(channels=(64, 128, 256)):
    """diffusers' autoencoder of the blocks of our VAE.

    One residual block a level, and a change of resolution after every level."""
    from diffusers import AutoencoderKL
    from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UpDecoderBlock2D
    from torch.nn import ModuleList
    levels, up = len(channels), channels[::-1]
    kw = dict(num_layers=1, resnet_eps=1e-6, resnet_act_fn='silu', resnet_groups=32)
    net = AutoencoderKL(in_channels=1, out_channels=1, latent_channels=2,
                        block_out_channels=channels, norm_num_groups=32, use_quant_conv=False,
                        use_post_quant_conv=False,
                        down_block_types=('DownEncoderBlock2D',)*levels,
                        up_block_types=('UpDecoderBlock2D',)*levels)
    # its own levels: the last one is not resampled, those of the decoder have two blocks, and
    # what is halved is padded on two sides (here, with 1, on all four)
    net.encoder.down_blocks = ModuleList(
        DownEncoderBlock2D(i, o, add_downsample=True, downsample_padding=1, **kw)
        for i, o in zip((channels[0], *channels), channels))
    net.decoder.up_blocks = ModuleList(
        UpDecoderBlock2D(i, o, add_upsample=True, **kw) for i, o in zip((up[0], *up), up))
    return net

def unet(kind):
    "diffusers' UNet in the report's configuration."
    from diffusers import UNet2DModel
    channels, c = CONFIG[kind]['channels'], CONFIG[kind].get('in_channels', 1)
    plain = len(channels) - 1
    return UNet2DModel(sample_size=32 if kind == 'pixel' else 8, in_channels=c, out_channels=c,
                       block_out_channels=channels, layers_per_block=1,
                       down_block_types=('DownBlock2D',)*plain + ('AttnDownBlock2D',),
                       up_block_types=('AttnUpBlock2D',) + ('UpBlock2D',)*plain)

def reference(contender, kind):
    """diffusers' network, and what is called.

    Of the autoencoder: from images to images and nats ('vae'), or its decoder."""
    import torch
    if kind in ('vae', 'decoder'):
        net = autoencoder()
        def reconstruct(x):
            q = net.encode(x).latent_dist
            return net.decode(q.sample()).sample, q.kl()
        # a compiled network is compiled for forward() alone, which gives no nats
        run = reconstruct if kind == 'vae' else net.decode
    else: net = run = unet(kind)
    if contender == 'eager': return net, run
    return net.to(memory_format=torch.channels_last), torch.compile(run)

def training(contender, kind, B):
    "One training step: noise, loss, gradients (of the autoencoder: clipped), AdamW, average."
    import torch
    torch.manual_seed(0)
    return (our_training if contender == 'mnistgen' else their_training)(contender, kind, B)

def our_training(contender, kind, B):
    import torch
    from mnistgen.ddpm import DDPM
    from mnistgen.lab.data import Batches
    from mnistgen.lab.training import Recipe, Task, Trainer
    from mnistgen.unet import UNet
    from mnistgen.vae import ELBO, VAE
    x = torch.randn(B, *((2, 4, 4) if kind == 'latent' else (1, 28, 28)))
    batches = Batches(x, batch_size=B)
    if kind == 'vae': net, process = VAE(), ELBO(beta=BETA)
    else: net, process = UNet(**CONFIG[kind]), DDPM()
    recipe = Recipe(batch_size=B, clip_grad=1. if kind == 'vae' else None)
    task = Task('benchmark', net, process, batches, batches)
    trainer = Trainer(task, recipe, tempfile.mkdtemp(), 'cpu')
    return lambda: trainer.train_step((x, None))

def their_training(contender, kind, B):
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel
    net, run = reference(contender, kind)
    x = torch.randn(B, *((2, 8, 8) if kind == 'latent' else (1, 32, 32)))
    scheduler = DDPMScheduler(beta_schedule='squaredcos_cap_v2')
    average = EMAModel(net.parameters(), decay=.995)
    fused = {'fused': True} if contender == 'best' else {}
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-4, **fused)
    def denoising():
        ε, t = torch.randn(x.shape), torch.randint(1000, (B,))
        noisy = scheduler.add_noise(x, ε, t)
        with half(contender): out = run(noisy, t).sample
        return F.mse_loss(out.float(), ε)
    def coding():
        with half(contender): out, nats = run(x)
        return F.mse_loss(out.float(), x) + BETA*nats.float().mean()
    def step():
        loss = coding() if kind == 'vae' else denoising()
        loss.backward()
        if kind == 'vae': torch.nn.utils.clip_grad_norm_(net.parameters(), 1.)
        optimizer.step()
        optimizer.zero_grad()
        average.step(net.parameters())
        return loss.item()
    return step

def latent_generator():
    "The report's latent model, with weights that nobody has trained."
    import torch
    from mnistgen.ddpm import DDPM
    from mnistgen.lab.options import Sampling
    from mnistgen.ldm import Latents
    from mnistgen.unet import UNet
    from mnistgen.vae import VAE, Autoencoder
    from mnistgen.zoo.generator import Generator
    torch.manual_seed(0)
    space = Latents(Autoencoder(VAE(), device='cpu'), 1.)
    return Generator(UNet(**CONFIG['latent']), DDPM(clip=False), space, Sampling('ddim', 100))

def sampling(contender, sampler, steps, n, stop=None, kind='pixel'):
    "A whole trajectory, from noise to images; or its first steps."
    f = our_sampling if contender == 'mnistgen' else their_sampling
    return f(contender, sampler, steps, n, stop, kind)

def our_sampling(contender, sampler, steps, n, stop, kind):
    import mnistgen
    g = mnistgen.load('ddpm', 'cpu') if kind == 'pixel' else latent_generator()
    kw = dict(n=n, sampler=sampler, steps=stop or steps)
    if sampler == 'ddim': kw['eta'] = 0.
    if stop: kw['batch_size'] = n
    return lambda: g.sample(**kw)

def their_sampling(contender, sampler, steps, n, stop, kind):
    import diffusers
    import torch
    torch.manual_seed(0)
    net, run = reference(contender, kind)
    net.eval()
    kinds = dict(ddpm=diffusers.DDPMScheduler, ddim=diffusers.DDIMScheduler)
    scheduler = kinds[sampler](beta_schedule='squaredcos_cap_v2', clip_sample=kind == 'pixel')
    if kind == 'latent':
        decoder, decode = reference(contender, 'decoder')
        decoder.eval()
    @torch.no_grad()
    def draw():
        scheduler.set_timesteps(steps)
        x = torch.randn(n, *((1, 32, 32) if kind == 'pixel' else (2, 8, 8)))
        for t in scheduler.timesteps[:stop]:
            with half(contender): eps = run(x, t).sample
            x = scheduler.step(eps.float(), t, x).prev_sample
        if kind == 'latent':
            with half(contender): x = decode(x[..., 2:6, 2:6]).sample.float()
        return ((x + 1)/2).clamp(0, 1)
    return draw

def decoding(contender, n):
    "Images of latents, with weights that nobody has trained."
    import torch
    torch.manual_seed(0)
    z = torch.randn(n, 2, 4, 4)
    if contender == 'mnistgen':
        from mnistgen.vae import VAE, Autoencoder
        a = Autoencoder(VAE(), device='cpu')
        return lambda: a.decode(z, batch_size=n)
    net, run = reference(contender, 'decoder')
    net.eval()
    @torch.no_grad()
    def decode():
        with half(contender): x = run(z).sample
        return ((x.float() + 1)/2).clamp(0, 1)
    return decode

def prepare(work, contender):
    "The function that does a work once."
    if work in TRAINING: return training(contender, *TRAINING[work])
    if work in LATENT: return sampling(contender, *LATENT[work], kind='latent')
    if work in DECODING: return decoding(contender, DECODING[work])
    if work == MEMORY: return sampling(contender, 'ddim', 50, 1000, stop=3)
    if work == COLD: return sampling(contender, 'ddim', 50, 10)
    return sampling(contender, *SAMPLING[work])

def seconds_of(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start

def worker(work, contender, repeats):
    """Do the work, once to warm up (whose time is kept), then `repeats` times.

    Prints what was measured, as JSON."""
    import torch
    f = prepare(work, contender)
    first, *times = [seconds_of(f) for _ in range(1 + repeats)]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    print(json.dumps(dict(first=first, seconds=times, memory=memory,
                          threads=torch.get_num_threads())))

# ---- the ladder: what each step of the engine gained

def median_time(f, repeats):
    times = [seconds_of(f) for _ in range(repeats + 3)]
    return sorted(times[3:])[repeats//2]

KINDS = {
    'convolutions': ('convolution', '_weight_gradient'),
    'normalisation and SiLU': ('norm', 'silu', '_Norm', '_Block'),
    'matrix products': ('mm', 'softmax'),
    'optimiser': ('adam', 'Optimizer'),
}
OTHER = 'adding, joining, copying, all else'

def time_by_kind(f):
    "Milliseconds by kind of operation."
    from torch.profiler import ProfilerActivity, profile
    for _ in range(3): f()
    with profile(activities=[ProfilerActivity.CPU]) as p:
        for _ in range(3): f()
    out = {k: 0. for k in (*KINDS, OTHER)}
    for e in p.key_averages():
        kinds = [k for k, words in KINDS.items() if any(w in e.key for w in words)]
        out[kinds[0] if kinds else OTHER] += e.self_cpu_time_total/3e3
    return out

def with_fast_norms(net):
    "The network with its normalisations in one pass, and nothing else."
    import torch
    from mnistgen.lab.engine import FastNorm
    fast = type('FastGroupNorm', (FastNorm, torch.nn.GroupNorm), {})
    for m in net.modules():
        if type(m) is torch.nn.GroupNorm: m.__class__ = fast
    return net

def machine(repeats=5):
    "Largest rates found: of matrix products (GFLOP/s by precision), and of copying (GB/s)."
    import torch
    a, b = [torch.randn(4096, 4096) for _ in range(2)]
    factors = {'float32': (a, b), 'bfloat16': (a.bfloat16(), b.bfloat16())}
    peak = {name: 2*4096**3/median_time(lambda: p @ q, repeats)/1e9
            for name, (p, q) in factors.items()}
    big, other = torch.empty(2**26), torch.empty(2**26)
    seconds = median_time(lambda: other.copy_(big), repeats)
    return dict(peak=peak, bandwidth=2*big.nbytes/seconds/1e9)

def ladder(repeats, B=128):
    """The training step of the pixel UNet, with one trick after the other, and one answer for ten
    images; and where the time goes without the tricks and with them."""
    import torch
    from mnistgen.ddpm import DDPM
    from mnistgen.lab.device import keep_memory
    from mnistgen.lab.engine import freeze, use_fast_kernels
    from mnistgen.unet import UNet
    torch.manual_seed(0)
    process, x = DDPM(), torch.randn(B, 1, 28, 28)
    rows = []
    def step(net, half):
        optimizer = torch.optim.AdamW(net.parameters(), 1e-3, fused=True)
        def run():
            with torch.autocast('cpu', torch.bfloat16, enabled=half):
                loss = process.loss(net, (x, None))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return run
    def add(name, net, half):
        rows.append((name, median_time(step(net, half), repeats)))
        print(f'  {name}: {B/rows[-1][1]:.0f} images a second', flush=True)
    def in_channels_last(): return UNet().to(memory_format=torch.channels_last)
    def fast():
        net = UNet()
        assert use_fast_kernels(net)
        return net
    before = time_by_kind(step(UNet(), False))
    add('float32, eager', UNet(), False)
    keep_memory()
    add('memory kept', UNet(), False)
    add('bfloat16', UNet(), True)
    add('channels last', in_channels_last(), True)
    add('normalisation in one pass', with_fast_norms(in_channels_last()), True)
    quickest = fast()
    add('residual block in one piece', quickest, True)
    add('the same, in float32', fast(), False)
    after = time_by_kind(step(quickest, True))
    net = UNet().requires_grad_(False)
    ten, t = torch.randn(10, 1, 28, 28), torch.full((10,), 500)
    ways = {'plain, float32': net, 'frozen, float32': freeze(net, torch.float32),
            'frozen, bfloat16': freeze(net, torch.bfloat16)}
    answers = [(name, median_time(lambda: f(ten, t), 5*repeats)) for name, f in ways.items()]
    return dict(batch=B, training=rows, answers=answers, before=before, after=after,
                flop_per_image=594e6, **machine())

# ---- in the parent: run the workers, make the table

def call(work, contender, repeats, cache):
    "A measurement in a fresh process."
    env = os.environ | dict(TORCHINDUCTOR_CACHE_DIR=str(cache/'inductor'),
                            XDG_CACHE_HOME=str(cache), PYTHONPATH=str(top))
    command = [sys.executable, __file__, '--worker', work, contender, str(repeats)]
    start = time.perf_counter()
    p = subprocess.run(command, env=env, capture_output=True, text=True)
    if p.returncode: sys.exit(f'{work}, {contender}:\n{p.stderr}')
    return json.loads(p.stdout.splitlines()[-1]) | dict(wall=time.perf_counter() - start)

def repeats_of(work, contender):
    if work in TRAINING: return 9
    if work in DECODING: return 25
    if work in (MEMORY, COLD): return 0
    if work.endswith('256 images'): return 1
    if '1000' in work: return 1 if contender == 'eager' else 3
    return 5

def entry(work, contender, tmp, repeats=None):
    "What is stored of a work and a contender."
    cache = Path(tmp)/(contender + work.replace(' ', '-') if work == COLD else contender)
    if repeats is None: repeats = repeats_of(work, contender)
    runs = [call(work, contender, repeats, cache)]
    if work == COLD: runs.append(call(work, contender, 0, cache))    # with what the first left
    times = sorted(runs[0]['seconds'] or [runs[0]['wall']])
    found = dict(seconds=times[len(times)//2], runs=len(times), slowest=times[-1],
                 fastest=times[0], first=runs[0]['first'],
                 memory=round(max(r['memory'] for r in runs)))
    if work == COLD: found['again'] = runs[1]['wall']
    print(f"{work:38s} {contender:9s} {found['seconds']:9.3f} s   first {found['first']:6.1f} s   "
          f"{found['memory']} MB", flush=True)
    return found

def summary(work, row):
    "A line of the table that is printed at the end."
    if work == MEMORY:
        return f'{work:38s} ' + '  '.join(f"{c} {row[c]['memory']} MB" for c in CONTENDERS)
    took = {c: row[c]['seconds'] for c in CONTENDERS if c in row}
    times = '  '.join(f'{c} {s:.3f} s' for c, s in took.items())
    ratios = [f"{took[c]/took['mnistgen']:.2f}x {c}" for c in took if c != 'mnistgen']
    return f"{work:38s} {times}   {', '.join(ratios)}"

def quick():
    "A few rows of this machine, printed."
    from mnistgen.lab.device import device_info, pick_device
    from mnistgen.lab.kernels import why_plain
    with tempfile.TemporaryDirectory() as tmp:
        rows = {work: {c: entry(work, c, tmp, 3) for c in ('eager', 'mnistgen')} for work in QUICK}
    print(f"\n{device_info(pick_device('cpu'))['name']}; {why_plain() or 'with compiled kernels'}")
    for work, row in rows.items(): print(summary(work, row))

def measured_ladder():
    p = subprocess.run([sys.executable, __file__, '--ladder'], capture_output=True, text=True,
                       check=True, env=os.environ | dict(PYTHONPATH=str(top)))
    return json.loads(p.stdout.splitlines()[-1])

def measure(only):
    from mnistgen.lab.device import device_info, pick_device
    from mnistgen.lab.store import versions
    import diffusers
    path = top/'results'/'benchmark-engine.json'
    result = json.loads(path.read_text()) if only and path.exists() else dict(rows={})
    here = dict(device=device_info(pick_device('cpu')), **versions(),
                diffusers=diffusers.__version__)
    # rows that are repeated elsewhere say so themselves
    if not only or 'device' not in result: result |= here
    rows = result['rows']
    with tempfile.TemporaryDirectory() as tmp:
        for work in WORKS:
            if only and only not in work: continue
            found = {c: entry(work, c, tmp) for c in CONTENDERS}
            rows[work] = dict(device=here['device']['name'], **found)
    if not only or only == 'ladder': result['ladder'] = measured_ladder()
    # in this order, also where some were measured later
    result['rows'] = {work: rows[work] for work in WORKS if work in rows}
    path.write_text(json.dumps(result, indent=1) + '\n')
    print()
    for work, row in result['rows'].items(): print(summary(work, row))

def parser():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', help='a word in the name of the rows to repeat, or ladder')
    p.add_argument('--quick', action='store_true',
                   help='a few rows of this machine in less than four minutes, printed only')
    p.add_argument('--worker', nargs=3, help=argparse.SUPPRESS)
    p.add_argument('--ladder', action='store_true', help=argparse.SUPPRESS)
    return p

if __name__ == '__main__':
    a = parser().parse_args()
    if a.worker: worker(a.worker[0], a.worker[1], int(a.worker[2]))
    elif a.ladder: print(json.dumps(ladder(9)))
    elif a.quick: quick()
    else: measure(a.only)
