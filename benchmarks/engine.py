"""How fast the engine is, side by side with diffusers: `python benchmarks/engine.py` (about 20 minutes on 2 cores, which should have nothing else to do).

Every measurement runs in a process of its own, so that no contender profits from another's settings. The contenders:
- eager:   diffusers as its documentation teaches it, float32
- best:    diffusers with bfloat16 autocast, torch.compile, channels last and a fused optimiser
- mnistgen: this library as it comes
All have the same architecture, batch and optimiser. Prints tables, writes results/benchmark-engine.json. `--only WORD` repeats some rows of it."""
import argparse, contextlib, json, os, resource, subprocess, sys, tempfile, time
from pathlib import Path

top = Path(__file__).resolve().parent.parent
CONTENDERS = 'eager', 'best', 'mnistgen'
TRAINING = {'train pixel, batch 128': ('pixel', 128), 'train latent, batch 128': ('latent', 128), 'train latent, batch 512': ('latent', 512), 'train vae, batch 128': ('vae', 128)}
SAMPLING = {f'{s.upper()}-{steps}, {n} image{"s"[:n > 1]}': (s, steps, n) for s, steps, n in [('ddpm', 1000, 10), *(('ddim', steps, n) for steps in (100, 50) for n in (1, 10, 256))]}
LATENT = {f'latent DDIM-100, {n} image{"s"[:n > 1]}': ('ddim', 100, n) for n in (1, 10, 256)}       # with the decoder behind it
DECODING = {f'decode {n} latents': n for n in (10, 250)}
MEMORY = 'memory, 1000 images'                       # as DDIM, three steps of it
COLD = 'from nothing to 10 images, DDIM-50'          # start of Python, import, loading, compilation
WORKS = *TRAINING, *SAMPLING, *LATENT, *DECODING, MEMORY, COLD
BETA = 1e-5                                          # of the nats, in the loss of the autoencoder
CONFIG = dict(pixel=dict(channels=(32, 64, 96, 96)), latent=dict(channels=(64, 128), in_channels=2, out_channels=2, pad_to=8))

# ---- in a worker: build a contender, return a function that does the work once

def half(contender):
    import torch
    return torch.autocast('cpu', torch.bfloat16) if contender == 'best' else contextlib.nullcontext()

def autoencoder(channels=(64, 128, 256)):
    "diffusers' autoencoder of the blocks of our VAE: one residual block a level, and a change of resolution after every level."
    from diffusers import AutoencoderKL
    from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UpDecoderBlock2D
    from torch.nn import ModuleList
    up, kw = channels[::-1], dict(num_layers=1, resnet_eps=1e-6, resnet_act_fn='silu', resnet_groups=32)
    net = AutoencoderKL(in_channels=1, out_channels=1, latent_channels=2, block_out_channels=channels, norm_num_groups=32, use_quant_conv=False, use_post_quant_conv=False,
                        down_block_types=('DownEncoderBlock2D',)*len(channels), up_block_types=('UpDecoderBlock2D',)*len(channels))
    # its own levels: the last one is not resampled, those of the decoder have two blocks, and what is halved is padded on two sides (here, with 1, on all four)
    net.encoder.down_blocks = ModuleList(DownEncoderBlock2D(i, o, add_downsample=True, downsample_padding=1, **kw) for i, o in zip((channels[0], *channels), channels))
    net.decoder.up_blocks = ModuleList(UpDecoderBlock2D(i, o, add_upsample=True, **kw) for i, o in zip((up[0], *up), up))
    return net

def reference(contender, kind):
    "diffusers' network in the report's configuration, and what is called: of the autoencoder, from images to images and nats, or its decoder."
    import torch
    from diffusers import UNet2DModel
    if kind in ('vae', 'decoder'):
        net = autoencoder()
        def whole(x): q = net.encode(x).latent_dist; return net.decode(q.sample()).sample, q.kl()
        run = whole if kind == 'vae' else net.decode                # a compiled network is compiled for forward() alone, which gives no nats
    else:
        channels = CONFIG[kind]['channels']
        plain, c = len(channels) - 1, CONFIG[kind].get('in_channels', 1)
        net = run = UNet2DModel(sample_size=32 if kind == 'pixel' else 8, in_channels=c, out_channels=c, block_out_channels=channels, layers_per_block=1,
                                down_block_types=('DownBlock2D',)*plain + ('AttnDownBlock2D',), up_block_types=('AttnUpBlock2D',) + ('UpBlock2D',)*plain)
    return (net, run) if contender == 'eager' else (net.to(memory_format=torch.channels_last), torch.compile(run))

def training(contender, kind, B):
    "One training step: noise, loss, gradients (of the autoencoder: clipped), AdamW, average."
    import torch
    import torch.nn.functional as F
    torch.manual_seed(0)
    if contender == 'mnistgen':
        from mnistgen.ddpm import DDPM
        from mnistgen.lab.data import Batches
        from mnistgen.lab.training import Recipe, Trainer
        from mnistgen.unet import UNet
        from mnistgen.vae import ELBO, VAE
        x = torch.randn(B, *((2, 4, 4) if kind == 'latent' else (1, 28, 28)))
        batches = Batches(x, batch_size=B)
        net, process, clip = (VAE(), ELBO(beta=BETA), 1.) if kind == 'vae' else (UNet(**CONFIG[kind]), DDPM(), None)
        trainer = Trainer('benchmark', net, process, batches, batches, Recipe(batch_size=B, clip_grad=clip), tempfile.mkdtemp(), 'cpu')
        return lambda: trainer.train_step((x, None))
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel
    net, run = reference(contender, kind)
    x = torch.randn(B, *((2, 8, 8) if kind == 'latent' else (1, 32, 32)))
    scheduler, ema = DDPMScheduler(beta_schedule='squaredcos_cap_v2'), EMAModel(net.parameters(), decay=.995)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-4, **({'fused': True} if contender == 'best' else {}))
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
        optimizer.step(); optimizer.zero_grad(); ema.step(net.parameters())
        return loss.item()
    return step

def latent_generator():
    "The report's latent model, with weights that nobody has trained."
    import torch
    from mnistgen.ddpm import DDPM
    from mnistgen.ldm import Latents
    from mnistgen.zoo.models import Generator
    from mnistgen.unet import UNet
    from mnistgen.vae import VAE, Autoencoder
    torch.manual_seed(0)
    return Generator(UNet(**CONFIG['latent']), DDPM(clip=False), Latents(Autoencoder(VAE(), device='cpu'), 1.), dict(sampler='ddim', steps=100))

def sampling(contender, sampler, steps, n, stop=None, kind='pixel'):
    "A whole trajectory, from noise to images; or its first steps."
    import torch
    if contender == 'mnistgen':
        import mnistgen
        g = mnistgen.load('ddpm', 'cpu') if kind == 'pixel' else latent_generator()
        kw = dict(n=n, sampler=sampler, steps=steps, **({'eta': 0.} if sampler == 'ddim' else {}))
        if stop is None: return lambda: g.sample(**kw)
        return lambda: [g.sample(**{**kw, 'steps': stop}, batch_size=n)]
    import diffusers
    torch.manual_seed(0)
    net, run = reference(contender, kind)
    net.eval()
    scheduler = (diffusers.DDPMScheduler if sampler == 'ddpm' else diffusers.DDIMScheduler)(beta_schedule='squaredcos_cap_v2', clip_sample=kind == 'pixel')
    if kind == 'latent': decoder, decode = reference(contender, 'decoder'); decoder.eval()
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

def worker(work, contender, repeats):
    "Do the work, first once to warm up (whose time is kept), then `repeats` times; print what was measured."
    import torch
    if work in TRAINING: f = training(contender, *TRAINING[work])
    elif work in LATENT: f = sampling(contender, *LATENT[work], kind='latent')
    elif work in DECODING: f = decoding(contender, DECODING[work])
    elif work == MEMORY: f = sampling(contender, 'ddim', 50, 1000, stop=3)
    elif work == COLD: f = sampling(contender, 'ddim', 50, 10)
    else: f = sampling(contender, *SAMPLING[work])
    times = []
    for _ in range(1 + repeats): start = time.perf_counter(); f(); times.append(time.perf_counter() - start)
    print(json.dumps(dict(first=times[0], seconds=times[1:], memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024, threads=torch.get_num_threads())))

# ---- the ladder: what each step of the engine gained

def ladder(repeats):
    "The training step of the pixel UNet and one answer for ten images, with one trick after the other; and where the time goes without and with them."
    import copy
    import torch
    from mnistgen.ddpm import DDPM
    from mnistgen.lab.device import keep_memory
    from mnistgen.lab.engine import FastNorm, Frozen, quicken
    from mnistgen.unet import UNet
    B, process = 128, DDPM()
    x, ten, t = torch.randn(B, 1, 28, 28), torch.randn(10, 1, 28, 28), torch.full((10,), 500)
    def step(net, dtype):
        optimizer = torch.optim.AdamW(net.parameters(), 1e-3, fused=True)
        def run():
            with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'bf16'): loss = process.loss(net, (x, None))
            loss.backward(); optimizer.step(); optimizer.zero_grad()
        return run
    def norms_only(net):
        for m in net.modules():
            if type(m) is torch.nn.GroupNorm: m.__class__ = FastNorm
        return net
    def time_of(f, repeats):
        times = []
        for _ in range(repeats + 3): start = time.perf_counter(); f(); times.append(time.perf_counter() - start)
        return sorted(times[3:])[repeats//2]
    def parts(f):
        "Milliseconds by kind of operation."
        from torch.profiler import ProfilerActivity, profile
        for _ in range(3): f()
        with profile(activities=[ProfilerActivity.CPU]) as p:
            for _ in range(3): f()
        kinds = {'convolutions': ('convolution', '_weight_gradient'), 'normalisation and SiLU': ('norm', 'silu', '_Norm', '_Block'), 'matrix products': ('mm', 'softmax'), 'optimiser': ('adam', 'Optimizer')}
        out = {k: 0. for k in (*kinds, 'adding, joining, copying, all else')}
        for e in p.key_averages(): out[next((k for k, words in kinds.items() if any(w in e.key for w in words)), list(out)[-1])] += e.self_cpu_time_total/3e3
        return out
    torch.manual_seed(0)
    new, rows = UNet, []
    def add(name, net, dtype): rows.append((name, time_of(step(net, dtype), repeats))); print(f'  {name}: {B/rows[-1][1]:.0f} images a second', flush=True)
    before = parts(step(new(), 'fp32'))
    add('float32, eager', new(), 'fp32')
    keep_memory()
    add('memory kept', new(), 'fp32')
    add('bfloat16', new(), 'bf16')
    add('channels last', new().to(memory_format=torch.channels_last), 'bf16')
    add('normalisation in one pass', norms_only(new().to(memory_format=torch.channels_last)), 'bf16')
    fast = new(); assert quicken(fast)
    add('residual block in one piece', fast, 'bf16')
    in_float = new(); quicken(in_float)
    add('the same, in float32', in_float, 'fp32')
    after = parts(step(fast, 'bf16'))
    net, answers = new().requires_grad_(False), []
    for name, f in (('plain, float32', lambda: net(ten, t)), ('frozen, float32', lambda f=Frozen(net, torch.float32): f(ten, t)), ('frozen, bfloat16', lambda f=Frozen(net, torch.bfloat16): f(ten, t))): answers.append((name, time_of(f, 5*repeats)))
    a, b = [torch.randn(4096, 4096) for _ in range(2)]
    peak = {name: 2*4096**3/time_of(lambda: p @ q, 5)/1e9 for name, p, q in (('float32', a, b), ('bfloat16', a.bfloat16(), b.bfloat16()))}
    big = torch.empty(2**26); other = torch.empty(2**26)
    return dict(batch=B, training=rows, answers=answers, before=before, after=after, peak=peak, bandwidth=2*big.nbytes/time_of(lambda: other.copy_(big), 5)/1e9, flop_per_image=594e6)

# ---- in the parent: run the workers, make the table

def call(work, contender, repeats, cache):
    "A measurement in a fresh process."
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(TORCHINDUCTOR_CACHE_DIR=str(cache/'inductor'), XDG_CACHE_HOME=str(cache), PYTHONPATH=str(top))
    start = time.perf_counter()
    p = subprocess.run([sys.executable, __file__, '--worker', work, contender, str(repeats)], env=env, capture_output=True, text=True)
    if p.returncode: sys.exit(f'{work}, {contender}:\n{p.stderr}')
    return json.loads(p.stdout.splitlines()[-1]) | dict(wall=time.perf_counter() - start)

def measure(only):
    from mnistgen.lab.device import device_info, pick_device
    from mnistgen.lab.store import versions
    import diffusers
    path = top/'results'/'benchmark-engine.json'
    result = json.loads(path.read_text()) if only and path.exists() else dict(rows={})
    here = dict(device=device_info(pick_device('cpu')), **versions(), diffusers=diffusers.__version__)
    if not only or 'device' not in result: result |= here           # rows that are repeated elsewhere say so themselves
    with tempfile.TemporaryDirectory() as tmp:
        for work in WORKS:
            if only and only not in work: continue
            row = dict(device=here['device']['name'])
            for c in CONTENDERS:
                repeats = 9 if work in TRAINING else 25 if work in DECODING else 0 if work in (MEMORY, COLD) else 1 if work.endswith('256 images') or '1000' in work and c == 'eager' else 3 if "1000" in work else 5
                cache = Path(tmp)/(c + work.replace(' ', '-') if work == COLD else c)
                runs = [call(work, c, repeats, cache)]
                if work == COLD: runs.append(call(work, c, 0, cache))                       # again, with what the first left in the cache
                times = sorted(runs[0]['seconds'] or [runs[0]['wall']])
                row[c] = dict(seconds=times[len(times)//2], runs=len(times), slowest=times[-1], fastest=times[0], first=runs[0]['first'], memory=round(max(r['memory'] for r in runs)), **({'again': runs[1]['wall']} if work == COLD else {}))
                print(f"{work:38s} {c:9s} {row[c]['seconds']:9.3f} s   first {row[c]['first']:6.1f} s   {row[c]['memory']} MB", flush=True)
            result['rows'][work] = row
    if not only or only == 'ladder': result['ladder'] = json.loads(subprocess.run([sys.executable, __file__, '--ladder'], capture_output=True, text=True, check=True, env=os.environ | dict(PYTHONPATH=str(top))).stdout.splitlines()[-1])
    result['rows'] = {work: result['rows'][work] for work in WORKS if work in result['rows']}          # in this order, also where some were measured later
    path.write_text(json.dumps(result, indent=1) + '\n')
    print()
    for work, row in result['rows'].items():
        if work == MEMORY: print(f"{work:38s} " + '  '.join(f"{c} {row[c]['memory']} MB" for c in CONTENDERS)); continue
        print(f"{work:38s} " + '  '.join(f"{c} {row[c]['seconds']:.3f} s" for c in CONTENDERS) + f"   {row['eager']['seconds']/row['mnistgen']['seconds']:.2f}x eager, {row['best']['seconds']/row['mnistgen']['seconds']:.2f}x best")

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', help='a word in the name of the rows to repeat, or ladder')
    p.add_argument('--worker', nargs=3, help=argparse.SUPPRESS)
    p.add_argument('--ladder', action='store_true', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.worker: worker(a.worker[0], a.worker[1], int(a.worker[2]))
    elif a.ladder: print(json.dumps(ladder(9)))
    else: measure(a.only)
