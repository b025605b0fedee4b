"The bundled models through diffusers' own networks and schedulers, from the same noise: the whole way from weights to pictures."
import json, sys
import numpy as np
import pytest
import torch
from conftest import root
import mnistgen
from mnistgen.ddpm import Noise
from mnistgen.lab.data import crop, load_images, normalize, reflect_pad
from mnistgen.lab.kernels import why_plain
from mnistgen.vae import VAE, divergence

diffusers = pytest.importorskip('diffusers', reason='diffusers is not installed')

@pytest.fixture(scope='module')
def g(): return mnistgen.load('ddpm', device='cpu', plain=True)

@pytest.fixture(scope='module')
def unet(g):
    "diffusers' network with the bundled weights."
    net = diffusers.UNet2DModel(sample_size=32, in_channels=1, out_channels=1, block_out_channels=(32, 64, 96, 96), layers_per_block=1,
                                down_block_types=('DownBlock2D',)*3 + ('AttnDownBlock2D',), up_block_types=('AttnUpBlock2D',) + ('UpBlock2D',)*3)
    net.load_state_dict(g.net.to_diffusers())
    return net.eval()

def test_network_agrees_at_every_noise_level(g, unet):
    gen = torch.Generator().manual_seed(0)
    t = torch.linspace(0, 999, 40).long()
    x = torch.randn(40, 1, 28, 28, generator=gen)
    with torch.no_grad(): ours, theirs = g.net(x, t), crop(unet(reflect_pad(x, 32), t).sample, 28, 28)
    assert (ours - theirs).abs().max() < 1e-5

@pytest.mark.parametrize('sampler, steps, eta', [('ddim', 50, 0.), ('ddim', 20, 1.), ('ddpm', 100, None), ('ddpm', 1000, None)])
def test_pictures_are_those_of_diffusers(g, unet, sampler, steps, eta):
    "The same noise through diffusers' scheduler and network: the same pictures, to a hundredth of a grey level of 255."
    n = 2
    noise = Noise(5, n)
    x = noise(torch.empty(n, 1, 28, 28))
    if sampler == 'ddim': s, kw = diffusers.DDIMScheduler(beta_schedule='squaredcos_cap_v2', set_alpha_to_one=True), dict(eta=eta, use_clipped_model_output=True)
    else: s, kw = diffusers.DDPMScheduler(beta_schedule='squaredcos_cap_v2'), {}
    s.alphas_cumprod = g.process.ᾱ[:-1]; s.one = torch.tensor(1., dtype=torch.float64)      # both with the float64 table: see 01_ddpm
    s.set_timesteps(steps)
    module = __import__(type(s).__module__, fromlist=['randn_tensor'])
    with pytest.MonkeyPatch.context() as m, torch.no_grad():
        m.setattr(module, 'randn_tensor', lambda shape, **kw: noise(torch.empty(shape)))     # each sample's own stream
        for t in s.timesteps:
            eps = crop(unet(reflect_pad(x.float(), 32), t).sample, 28, 28)
            if sampler == 'ddim' and eta:                                                    # diffusers takes it as an argument
                last = t == s.timesteps[-1]
                x = s.step(eps, t, x, variance_noise=torch.zeros_like(x) if last else noise(x), **kw).prev_sample
            else: x = s.step(eps, t, x, **kw).prev_sample
    theirs = ((x.float() + 1)/2).clamp(0, 1)
    ours = g.sample(n, sampler=sampler, steps=steps, eta=eta, seed=5)
    assert (ours - theirs).abs().max()*255 < .01

@pytest.mark.parametrize('eta', [0, 1])
def test_stored_samples_are_of_the_bundled_weights(g, eta):
    "The images in results/ that figures are made of can be drawn again, to a grey level: they belong to these weights."
    stored = np.load(root/f'results/ddim-50-eta{eta}-n1000.npy')
    assert stored.shape == (1000, 28, 28) and stored.dtype == np.uint8
    assert json.loads((root/f'results/ddim-50-eta{eta}-n1000.json').read_text())['weights'] == g.header['checksum']
    again = (g.sample(8, sampler='ddim', steps=50, eta=float(eta))*255).round()[:, 0]
    assert (again - torch.from_numpy(stored[:8]).float()).abs().max() <= 2

def test_stored_ddpm_samples_are_of_the_bundled_weights(g):
    stored, strip = np.load(root/'results/ddpm-16x1000.npy'), np.load(root/'results/ddpm-strip.npz')
    assert json.loads((root/'results/ddpm-16x1000.json').read_text())['weights'] == g.header['checksum']
    again = (g.sample(2, sampler='ddpm')*255).round()[:, 0]
    assert (again - torch.from_numpy(stored[:2]).float()).abs().max() <= 2
    assert strip['steps'][-1] == 1000 and (strip['frames'][:, -1] == stored[:3]).all()

@pytest.mark.parametrize('kw, alike', [(dict(n=6, sampler='ddpm'), 1.), (dict(n=32, sampler='ddim', steps=50, eta=0.), .85)], ids=str)
def test_the_fast_way_gives_the_same_pictures(g, kw, alike):
    """In half precision pictures are off by less than a grey level on average, and by more than 8 in less than one pixel in fifty. A few of those
    that are drawn without fresh noise take another turn on their way, and are off by more than 3, but by no more than half of what another digit would be."""
    fast = mnistgen.load('ddpm', device='cpu')
    if why_plain(): pytest.skip(why_plain())
    exact, again = g.sample(**kw), fast.sample(**kw)
    d = (again - exact).abs()*255
    each = d.mean((1, 2, 3))
    assert d.mean() < 1 and (d > 8).float().mean() < .02 and (each < 3).float().mean() >= alike and each.max() < 12
    assert (again[1:] - exact[:-1]).abs().mean((1, 2, 3)).median()*255 > 24            # other digits
    assert fast.sample(**kw).equal(again)                              # and always the same ones

def test_record_and_weights_are_of_one_run(g):
    record = json.loads((root/'results/ddpm.json').read_text())
    last = record['history'][-1]
    assert (g.header['epochs'], g.header['train_loss'], g.header['eval_loss'], g.header['commit']) == (last['epoch'], last['train_loss'], last['eval_loss'], record['commit'])
    for e in record['recipe']['stages']:
        for suffix in ('', '-raw'): assert (root/f'results/ddpm-epoch-{e:03d}{suffix}.png').exists()

# ---- the autoencoder, which the benchmark compares with this one of diffusers

NAMES = dict(shortcut='conv_shortcut', norm='group_norm', q='to_q', k='to_k', v='to_v', out='to_out.0')      # here: there, in residual blocks and attention

@pytest.fixture(scope='module', params=['random', 'bundled'])
def vae(request):
    if request.param == 'bundled': return mnistgen.load('vae', device='cpu', plain=True).net
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = VAE().eval().requires_grad_(False)
        for p in net.parameters(): p += .05*torch.randn(p.shape)     # normalisations too, all of which begin as ones and zeros
    return net

@pytest.fixture(scope='module')
def kl(vae):
    "diffusers' autoencoder with the weights of ours."
    sys.path.insert(0, str(root/'benchmarks'))
    from engine import autoencoder
    net = autoencoder().eval().requires_grad_(False)
    e, d = net.encoder, net.decoder
    mid = lambda half: [half.mid_block.resnets[0], *half.mid_block.attentions, half.mid_block.resnets[1]]
    encoder = [e.conv_in, *(m for b in e.down_blocks for m in (*b.resnets, b.downsamplers[0].conv)), *mid(e), e.conv_norm_out, e.conv_act, e.conv_out]
    decoder = [d.conv_in, *mid(d), *(m for b in d.up_blocks for m in (*b.resnets, b.upsamplers[0].conv)), d.conv_norm_out, d.conv_act, d.conv_out]
    for line, other in ((vae.encoder, encoder), (vae.decoder, decoder)):
        for ours, theirs in zip(line, other, strict=True):
            names = {k: k.partition('.') for k in ours.state_dict()}
            theirs.load_state_dict({NAMES.get(head, head) + dot + rest: ours.state_dict()[k] for k, (head, dot, rest) in names.items()})
    return net

def off(ours, theirs):
    "The largest difference, relative to the largest number."
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max()/theirs.abs().max()).item()

def test_autoencoder_has_as_many_parameters(vae, kl):
    count = lambda net: [sum(p.numel() for p in m.parameters()) for m in (net.encoder, net.decoder, net)]
    assert count(vae) == count(kl) == [4_634_308, 5_183_041, 9_817_349]

def test_autoencoder_agrees(vae, kl):
    "Real digits to the same posterior with the same nats, and latents to the same images, to 1e-5 of the largest number."
    x = normalize(load_images(split='test').pixels[:3])
    z = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (mean, logvar), q = vae.encode(x), kl.encode(reflect_pad(x, 32)).latent_dist
        image, theirs = vae.decode(z), crop(kl.decode(z).sample, 28, 28)
    assert off(mean, q.mean) < 1e-5 and off(logvar, q.logvar) < 1e-5 and off(image, theirs) < 1e-5
    assert off(divergence(mean, logvar).sum((1, 2, 3)), q.kl()) < 1e-5
    assert mean.std() > .01 and logvar.std() > .01 and image.std() > .01          # something was compared

def test_divergence_is_that_of_diffusers():
    "Also of posteriors from a point to a very wide one."
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    q = DiagonalGaussianDistribution(10*torch.randn(50, 4, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert q.logvar.min() == -30 and q.logvar.max() == 20
    torch.testing.assert_close(divergence(q.mean, q.logvar).sum((1, 2, 3)), q.kl(), rtol=1e-5, atol=0)
