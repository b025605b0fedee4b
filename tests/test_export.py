"ONNX files: every kind of network answers from a file as it does from PyTorch, in any batch; whole command lines; what is refused."
import json, sys
from pathlib import Path

import numpy as np
import pytest, torch
import mnistgen
from mnistgen.beyond.attributes import AttributeMLP
from mnistgen.cfg import ConcatUNet, CrossUNet, LabelMLP
from mnistgen.ddpm import DDPM
from mnistgen.lab.data import Pixels
from mnistgen.lab.options import Sampling, refusal
from mnistgen.ldm import MLP
from mnistgen.rectified_flow import RectifiedFlow
from mnistgen.unet import UNet
from mnistgen.vae import VAE, Autoencoder
from mnistgen.zoo.cli import main
from mnistgen.zoo.export import export_onnx
from mnistgen.zoo.generator import Generator

onnxruntime = pytest.importorskip('onnxruntime')

class Latent:
    shape = (2, 4, 4)

SMALL = dict(channels=(32, 64), pad_to=8)
KINDS = {'UNet on pixels': (lambda: UNet(channels=(32, 32), pad_to=32), Pixels, DDPM),
         'concatenation': (lambda: ConcatUNet(**SMALL), Latent, DDPM),
         'cross-attention': (lambda: CrossUNet(**SMALL, in_channels=2, out_channels=2), Latent, DDPM),
         'attributes': (lambda: AttributeMLP(width=64, blocks=2), Latent, RectifiedFlow),
         'MLP with labels': (lambda: LabelMLP(width=64, blocks=2), Latent, RectifiedFlow)}

def session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])

def largest_difference(g, path, n):
    "Of the answers of file and network to random inputs."
    net, inputs, _ = g.as_function(n)
    rng = torch.Generator().manual_seed(n)
    for k, v in inputs.items():
        if k == 't': inputs[k] = torch.rand(n, generator=rng)*999
        elif k == 'w': inputs[k] = 1 + 7*torch.rand(n, generator=rng)
        elif v.is_floating_point(): inputs[k] = torch.randn(v.shape, generator=rng)
        else: inputs[k] = torch.randint(-1, 10, v.shape, generator=rng)
    got, = session(path).run(None, {k: v.numpy() for k, v in inputs.items()})
    with torch.no_grad(): want = net(**inputs).numpy()
    assert got.shape == want.shape
    return abs(got - want).max()/abs(want).max()

@pytest.mark.parametrize('kind', KINDS)
def test_a_file_answers_as_the_network_does(kind, tmp_path):
    make, space, process = KINDS[kind]
    torch.manual_seed(0)
    g = Generator(make(), process(), space(), Sampling('ddim', 5), dict(model='toy'), plain=True)
    export_onnx(g, tmp_path/'a.onnx', half=False)
    for n in (1, 5): assert largest_difference(g, tmp_path/'a.onnx', n) < 1e-5
    if kind != 'MLP with labels': return
    export_onnx(g, tmp_path/'b.onnx')
    assert 1e-7 < largest_difference(g, tmp_path/'b.onnx', 4) < 5e-3    # these weights were never rounded before
    assert (tmp_path/'b.onnx').stat().st_size < .75*(tmp_path/'a.onnx').stat().st_size

def test_a_decoder(tmp_path):
    torch.manual_seed(0)
    g = Autoencoder(VAE(channels=(32, 32), fold=2, middle=False, groups=16), plain=True)
    export_onnx(g, tmp_path/'a.onnx', half=False)
    for n in (1, 3): assert largest_difference(g, tmp_path/'a.onnx', n) < 1e-4

def test_a_file_names_no_path_of_the_machine(tmp_path):
    assert main(f'export one-step --out {tmp_path}/a.onnx'.split()) == 0
    content = (tmp_path/'a.onnx').read_bytes()
    assert str(Path(mnistgen.__file__).parent).encode() not in content and b'site-packages' not in content and b'.py' not in content

def test_bundled_weights_lose_nothing(tmp_path, capsys):
    "They are float16 already. And the command line says what it wrote."
    for name, line in (('one-step', 'x, t, label, w to answer'), ('vae-light', 'z to images')):
        path = tmp_path/f'{name}.onnx'
        assert main(['export', name, '--out', str(path)]) == 0
        assert f'{path}: {line}, ' in capsys.readouterr().out
        g = mnistgen.load(name, 'cpu', plain=True)
        assert largest_difference(g, path, 7) < 1e-4
        about = json.loads(session(path).get_modelmeta().custom_metadata_map['mnistgen'])
        assert about['weights'] == g.header['checksum']
    assert abs(about['scale'] - g.header['scale']) < 1e-12

def test_metadata_tell_the_loop(tmp_path):
    g = Generator(MLP(width=32, blocks=1), DDPM(predict='v', clip=False), Latent(), Sampling('ddim', 9, eta=.5), dict(model='toy'), plain=True)
    export_onnx(g, tmp_path/'a.onnx')
    about = json.loads(session(tmp_path/'a.onnx').get_modelmeta().custom_metadata_map['mnistgen'])
    assert about['process'] == 'DDPM' and about['process_config']['predict'] == 'v' and about['shape'] == [2, 4, 4]
    assert Sampling(**about['sampling']) == g.sampling
    assert np.allclose(about['alpha_bar'], [g.process.levels(t)[0]**2 for t in range(1000)], atol=1e-12)

@pytest.mark.parametrize('flags, words', [
    ('', 'give a file that ends in .onnx'), ('--out a.png', 'give a file that ends in .onnx'), ('--out /proc/a.onnx', 'cannot be written')])
def test_what_makes_no_sense_is_refused_in_a_line(flags, words, capsys):
    assert main(f'export rf-fast {flags}'.split()) == 2
    said = capsys.readouterr().err
    assert words in said and said.count('\n') == 1

def test_without_the_packages_a_line_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    g = mnistgen.load('vae-light', 'cpu', plain=True)
    assert 'pip install mnistgen[export]' in refusal(export_onnx, g, tmp_path/'a.onnx')
    assert not list(tmp_path.iterdir())
