"""Quantized products: the definitions against exact arithmetic, and the kernels against the definitions.

Kernels run on a GPU where there is one, otherwise in Triton's interpreter if Triton is installed.
"""

import importlib
import sys
from importlib.util import find_spec

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from farout.errors import BadInput  # noqa: E402
from farout.quantize import kernels  # noqa: E402
from farout.quantize.kernels import Int4Weight, reference  # noqa: E402

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
STEP = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}  # of the last bit


def inputs(M, K, outliers=0, dtype=torch.float16, seed=0):
    """Rows of normal values below 6, with some columns that reach it in two tokens; the last row is all zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(M, K, generator=generator).clamp(-5, 5)
    for column in torch.randperm(K, generator=generator)[:outliers]:
        x[torch.randint(max(1, M - 1), (2,), generator=generator), column] = 20 * (-1.0) ** int(column)
    if M > 2:
        x[-1] = 0
    return x.to(dtype).to(DEVICE)


def weight(N, K, seed=1):
    return torch.randn(N, K, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


# ---- the definitions


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 40, 17), (33, 8192, 24)])
def test_integer_products_are_exact(shape):
    M, K, N = shape
    a = torch.randint(-128, 128, (M, K), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    b = torch.randint(-128, 128, (N, K), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    a[0], b[0] = 127, 127  # far more than float32 can add one by one
    found = reference.integer_product(a.to(DEVICE), b.to(DEVICE)).cpu()
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), a.long() @ b.long().T)


def test_int8_codes_one_by_one():
    x = inputs(20, 64, outliers=3).cpu()
    x[4, 5] = 6.0  # at the threshold: an outlier
    codes, absmax, columns = reference.quantize_int8(x, 6.0)
    rows = x.double().numpy()
    outlying = [j for j in range(64) if np.abs(rows[:, j]).max() >= 6.0]
    assert columns.tolist() == outlying and 5 in outlying
    for i, row in enumerate(rows):
        below = [abs(value) for value in row if abs(value) < 6.0]  # of outlier columns too
        assert absmax[i] == max(below)
        for j, value in enumerate(row):
            expected = 0 if j in outlying or absmax[i] == 0 else value * 127 / float(absmax[i])
            assert abs(int(codes[i, j]) - expected) <= 0.5 + 1e-5


def test_an_ordinary_element_of_an_outlier_column_counts_for_its_row():
    x = torch.tensor([[5.0, 1.0], [7.0, 1.0]])
    codes, absmax, columns = reference.quantize_int8(x, 6.0)
    assert absmax.tolist() == [5.0, 1.0] and columns.tolist() == [0] and codes.tolist() == [[0, 25], [0, 127]]


@pytest.mark.parametrize("outliers", [0, 4])
def test_llm_int8_is_its_two_parts(outliers):
    x, bias = inputs(12, 96, outliers).cpu(), torch.arange(24.0)
    codes, absmax, _ = reference.quantize_int8(weight(24, 96).cpu())
    y = reference.int8_linear(x.float(), codes, absmax, bias, 6.0)
    x_codes, x_absmax, columns = reference.quantize_int8(x, 6.0)
    assert len(columns) == outliers
    exact = x_codes.double() @ codes.double().T * x_absmax.double()[:, None] * absmax.double() / 127**2 + bias.double()
    exact += x.double()[:, columns] @ (codes.double() * absmax.double()[:, None] / 127)[:, columns].T
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-4)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(2))
    permuted = reference.int8_linear(x.float()[:, order], codes[:, order], absmax, bias, 6.0)
    torch.testing.assert_close(permuted, y, rtol=1e-5, atol=1e-4)


def test_a_threshold_below_everything_leaves_the_16_bit_product():
    x = inputs(6, 32)[:-1].cpu() + 1000
    codes, absmax, _ = reference.quantize_int8(weight(8, 32).cpu())
    dense = (codes.float() * absmax[:, None] / 127).half().double()
    torch.testing.assert_close(
        reference.int8_linear(x, codes, absmax, None, 1e-3).double(), x.double() @ dense.T, rtol=2e-3, atol=2e-1
    )


def test_bitsandbytes_agrees():
    bnb = pytest.importorskip("bitsandbytes.functional")
    x, w = inputs(20, 64, outliers=3).cpu()[:-1], weight(24, 64).cpu().half()
    codes, absmax, columns = reference.quantize_int8(x, 6.0)
    theirs, their_absmax, their_columns = bnb.int8_vectorwise_quant(x.clone(), threshold=6.0)
    assert torch.equal(their_columns.long(), columns) and torch.equal(their_absmax.float(), absmax)
    assert (theirs.int() - codes.int()).abs().max() <= 1 and (theirs != codes).float().mean() < 1e-3
    w_codes, w_absmax, _ = reference.quantize_int8(w)
    assert torch.equal(bnb.int8_vectorwise_quant(w)[1].float(), w_absmax)
    product = bnb.int8_linear_matmul(codes, w_codes)
    assert torch.equal(product, reference.integer_product(codes, w_codes))
    zeroed = bnb.int8_mm_dequant(product, absmax, w_absmax, bias=torch.linspace(-3, 3, 24).half()).float()
    outlying = x[:, columns].float() @ (w_codes[:, columns].float() * w_absmax[:, None] / 127).half().float().T
    found = reference.int8_linear(x, w_codes, w_absmax, torch.linspace(-3, 3, 24).half(), 6.0).float()
    torch.testing.assert_close(found, zeroed + outlying, rtol=2e-3, atol=2e-2)


def test_fp8_codes_are_the_nearest():
    x = inputs(9, 40).cpu().float()
    codes, scale = reference.quantize_fp8(x)
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    every = every[every.isfinite()]
    scaled = x[:-1] / scale[:-1, None]
    nearest = (scaled[..., None] - every).abs().amin(-1)
    torch.testing.assert_close((codes[:-1].float() - scaled).abs(), nearest, rtol=1e-4, atol=1e-4)
    assert codes.float().abs().amax(1)[:-1].eq(448).all() and codes[-1].float().abs().max() == 0
    w_codes, w_scale = reference.quantize_fp8(weight(16, 40).cpu())
    y = reference.fp8_linear(x, w_codes, w_scale, torch.ones(16))
    exact = (codes.double() * scale.double()[:, None]) @ (w_codes.double() * w_scale.double()[:, None]).T + 1
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)


# ---- the packed weight


def four_bits(N, K, group, zeros, dtype=torch.float16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(16, (N, K), generator=generator)
    scale = (torch.rand(N, K // group, generator=generator) + 0.1).to(dtype)
    zero = torch.randint(16, scale.shape, generator=generator) if zeros else None
    exact = (codes.double() - (8 if zero is None else zero.repeat_interleave(group, 1))) * (
        scale.double().repeat_interleave(group, 1)
    )
    return codes, scale, zero, exact


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("N", "K", "group"), [(5, 96, 32), (24, 512, 64), (9, 1280, 128)])
def test_packed_weights_keep_every_code(N, K, group, zeros):
    codes, scale, zero, exact = four_bits(N, K, group, zeros)
    packed = Int4Weight.from_codes(codes, scale, zero)
    assert torch.equal(packed.codes().long(), codes) and torch.equal(packed.dense().double(), exact)
    word = packed.words[2, group - 1].item() & 0xFFFFFFFF  # the last element of each of the first groups
    assert [word >> 4 * j & 15 for j in range(min(8, K // group))] == codes[2, group - 1 :: group][:8].tolist()

    stored = packed.compressed_tensors()
    for n, k in [(0, 0), (N - 1, 7), (3, K - 3)]:
        assert stored["weight_packed"][n, k // 8] >> 4 * (k % 8) & 15 == codes[n, k]
    if zeros:
        assert stored["weight_zero_point"][(N - 1) // 8, 1] >> 4 * ((N - 1) % 8) & 15 == zero[N - 1, 1]
    again = Int4Weight.from_compressed_tensors(
        stored["weight_packed"], stored["weight_scale"], (N, K), stored.get("weight_zero_point")
    )
    assert torch.equal(again.dense(), packed.dense()) and torch.equal(again.words, packed.words)


@pytest.mark.parametrize(
    ("codes", "scale", "zero", "said"),
    [
        (torch.full((2, 8), 16), torch.ones(2, 1), None, r"0\.\.15"),
        (torch.zeros(2, 8, dtype=torch.int), torch.ones(2, 3), None, "divide"),
        (torch.zeros(2, 8, dtype=torch.int), torch.ones(2, 2), torch.zeros(2, 1), "shape"),
    ],
)
def test_what_cannot_be_packed_is_said(codes, scale, zero, said):
    with pytest.raises(BadInput, match=said):
        Int4Weight.from_codes(codes, scale, zero)


# ---- the transform


def sylvester(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.kron([[1, 1], [1, -1]], h)
    return torch.from_numpy(h / np.sqrt(n))


@pytest.mark.parametrize(("K", "block"), [(64, None), (96, None), (96, 8), (7, None)])
def test_hadamard_is_the_matrix(K, block):
    x = weight(3, K).cpu()
    size = reference.hadamard_block(K, block)
    expected = (x.double().reshape(3, -1, size) @ sylvester(size)).reshape(3, K)
    torch.testing.assert_close(reference.hadamard(x, block).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(reference.hadamard(reference.hadamard(x, block), block), x, rtol=1e-5, atol=1e-6)
    codes, step = kernels.quantize_hadamard(x, bits=4, block=block)
    assert codes.abs().amax(1).eq(7).all()
    assert ((codes.double() * step.double()[:, None] - expected).abs() <= step[:, None] * 0.501).all()


@pytest.mark.parametrize("call", [{"block": 3}, {"block": 128}, {"bits": 9}, {"bits": 1}])
def test_what_cannot_be_transformed_is_said(call):
    with pytest.raises(BadInput):
        kernels.quantize_hadamard(torch.ones(2, 96), **call)


def test_widths_must_agree_and_leading_axes_stay():
    codes, absmax, _ = kernels.quantize_int8(weight(8, 32))
    x = inputs(6, 32)
    assert torch.equal(
        kernels.int8_linear(x.reshape(2, 3, 32), codes, absmax).reshape(6, 8), kernels.int8_linear(x, codes, absmax)
    )
    with pytest.raises(BadInput, match="31 inputs"):
        kernels.int8_linear(x[:, :31], codes, absmax)
    with pytest.raises(BadInput, match="floating"):
        kernels.quantize_fp8(codes)
    assert kernels.int8_linear(x[:0], codes, absmax).shape == (0, 8)


# ---- the kernels


def _interpret():
    """Import the kernels for Triton's interpreter, and mend what in it stops them: see the two comments."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)  # its scalars are arrays of one element, which numpy from 2.4 on does not turn into int
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
    dot = interpreter.InterpreterBuilder.create_dot
    tl = importlib.import_module("triton.language")

    def wide(x):  # it keeps bfloat16 as 16-bit integers, and would multiply these
        return (x.data.astype(np.uint32) << 16).view(np.float32)

    def create_dot(self, a, b, d, *options):
        if a.dtype.scalar == tl.bfloat16:
            return interpreter.TensorHandle(wide(a) @ wide(b) + d.data, d.dtype.scalar)
        return dot(self, a, b, d, *options)

    interpreter.InterpreterBuilder.create_dot = create_dot


@pytest.fixture(scope="module")
def triton_kernels():
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    if GPU and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("the kernels need compute capability 9")
    with pytest.MonkeyPatch.context() as patch:
        if not GPU:
            if "triton" in sys.modules and not sys.modules["triton"].knobs.runtime.interpret:
                pytest.skip("Triton was imported without its interpreter")
            patch.setenv("TRITON_INTERPRET", "1")
            _interpret()
        yield {
            name: importlib.import_module(f"farout.quantize.kernels.{name}")
            for name in ("int8", "fp8", "w4a16", "hadamard_quantize")
        }


HALF, BRAIN = torch.float16, torch.bfloat16
PRODUCTS = [
    (1, 64, 64, 3, HALF),  # one token: an element is a column
    (5, 144, 72, 0, BRAIN),
    (20, 256, 40, 100, HALF),  # more columns than one step takes
    (40, 96, 136, 7, BRAIN),
    (300, 128, 264, 2, HALF),
    *([(2048, 4096, 4096, 7, BRAIN), (257, 11008, 512, 80, BRAIN)] if GPU else []),
]


def codes_of_ordinary_elements(x, absmax, threshold):
    """Codes of all that is below the threshold, outlier columns too."""
    values = x.float() if threshold == 0 else x.float().masked_fill(x.abs() >= threshold, 0.0)
    inverse = torch.where(absmax > 0, torch.full_like(absmax, 127.0) / absmax, 0.0)
    return torch.round(values * inverse[:, None]).to(torch.int8)


@pytest.mark.parametrize(("dtype", "far"), [(torch.float64, 1e-12), (torch.bfloat16, 2.0**-8)])
def test_outlier_columns_may_be_multiplied_twice(dtype, far):
    """The kernel's form of LLM.int8(): all ordinary elements in 8 bits, outlier columns added less what these gave."""
    x, (w, w_absmax, _) = inputs(12, 96, 4, torch.float32).cpu(), reference.quantize_int8(weight(24, 96).cpu())
    codes, absmax, columns = reference.quantize_int8(x, 6.0)
    scales = absmax.double()[:, None] * w_absmax.double() / 127**2
    dense = w.double() * w_absmax.double()[:, None] / 127
    expected = codes.double() @ w.double().T * scales + x.double()[:, columns] @ dense[:, columns].T
    all_codes = codes_of_ordinary_elements(x, absmax, 6.0)
    assert not torch.equal(all_codes, codes)
    rest = (x.double() - all_codes.double() * absmax.double()[:, None] / 127)[:, columns].to(dtype).double()
    y = all_codes.double() @ w.double().T * scales + rest @ dense[:, columns].to(dtype).double().T
    torch.testing.assert_close(y, expected, rtol=far, atol=far * float(expected.std()))


@pytest.mark.parametrize(("M", "K", "N", "outliers", "dtype"), PRODUCTS)
def test_int8_kernels(triton_kernels, M, K, N, outliers, dtype):
    int8 = triton_kernels["int8"]
    x, bias = inputs(M, K, outliers, dtype), torch.linspace(-3, 3, N).to(dtype).to(DEVICE)
    w, w_absmax, _ = reference.quantize_int8(weight(N, K))
    for threshold in (6.0, 0.0):
        codes, absmax, columns = reference.quantize_int8(x, threshold)
        for _ in range(2):  # the second time finds the marks as the first left them
            found, found_absmax, listed = int8.quantize(x, threshold)
            if threshold:
                assert torch.equal(listed[: int(listed[-1])].long(), columns)
                assert (found[x.abs() >= threshold] == 0).all()
            ordinary = codes_of_ordinary_elements(x, absmax, threshold)
            assert torch.equal(found, ordinary) and torch.equal(found_absmax, absmax)
            found[:, columns] = 0
            assert torch.equal(found, codes)
        offset = bias if threshold else None
        y = int8.linear(x, w, w_absmax, offset, threshold).double()
        expected = reference.int8_linear(x, w, w_absmax, offset, threshold).double()
        exact = ordinary.double() @ w.double().T * (absmax.double()[:, None] * w_absmax.double() / 127**2)
        already = (ordinary.double() * absmax.double()[:, None] / 127)[:, columns]  # of outlier columns in 8 bits
        dense = (w.float() * (w_absmax * (1 / 127))[:, None])[:, columns].to(dtype).double()
        exact += (x.double()[:, columns] - already).to(dtype).double() @ dense.T
        exact += 0 if offset is None else offset.double()
        if GPU or dtype == HALF:
            step, spread = STEP[dtype], float(expected.std())
            torch.testing.assert_close(y, exact, rtol=0.55 * step, atol=step * spread / 256)
            # The reference rounds the weights of all of an outlier column to 16 bits, the kernel those of the rest.
            allowed = step * (expected.abs() + spread / 16 + already.abs() @ dense.abs().T)
            assert ((y - expected).abs() <= allowed).all()
        else:  # weights and sums are truncated to bfloat16 there
            assert (y - expected).norm() < 0.01 * expected.norm()


def test_int8_product_is_exact(triton_kernels):
    """With scales that undo each other the kernel's sum is the integer itself."""
    int8 = triton_kernels["int8"]
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-127, 128, (70, 1040), generator=generator, dtype=torch.int8)
    b = torch.randint(-127, 128, (80, 1040), generator=generator, dtype=torch.int8)
    ones = torch.ones(80, device=DEVICE)
    y = int8.product(a.to(DEVICE), ones[:70], b.to(DEVICE), ones, None, 2.0**-8, torch.float32).double().cpu()
    assert torch.equal(y * 2**8, (a.long() @ b.long().T).double())


@pytest.mark.parametrize("tile", [(128, 128, 128, 8, 8, 3), (64, 64, 64, 1, 4, 2)])
def test_int8_tiles_do_not_matter(triton_kernels, tile):
    int8 = triton_kernels["int8"]
    x, (w, w_absmax, _) = inputs(130, 208, 5), reference.quantize_int8(weight(200, 208))
    other = int8.linear(x, w, w_absmax, None, 6.0, int8.Tile(*tile))
    torch.testing.assert_close(other, int8.linear(x, w, w_absmax, None, 6.0), rtol=STEP[x.dtype], atol=1e-2)


@pytest.mark.parametrize(("M", "K", "N", "outliers", "dtype"), PRODUCTS)
def test_fp8_kernels(triton_kernels, M, K, N, outliers, dtype):
    fp8 = triton_kernels["fp8"]
    x = inputs(M, K, outliers, dtype)
    N = N // 16 * 16
    codes, scale = reference.quantize_fp8(x)
    found, found_scale = fp8.quantize(x)
    assert torch.equal(found_scale, scale)
    if GPU:
        assert torch.equal(found.view(torch.uint8), codes.view(torch.uint8))
    else:  # the interpreter loses the carry into the exponent when it rounds to 8 bits
        assert (found.float() != codes.float()).float().mean() < 0.05
    w, w_scale = reference.quantize_fp8(weight(N, K))
    bias = torch.linspace(-3, 3, N).to(dtype).to(DEVICE)
    exact = (found.double() * found_scale.double()[:, None]) @ (
        w.double() * w_scale.double()[:, None]
    ).T + bias.double()
    for tile in (None, triton_kernels["int8"].tile_for(M)):
        y = fp8.linear(x, w, w_scale, bias, tile).double()
        assert (y - exact).norm() / exact.norm() < STEP[dtype] + 1e-3


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(
    ("M", "K", "N", "group", "dtype"),
    [
        (3, 256, 48, 32, HALF),
        (16, 640, 72, 64, HALF),
        (1, 1408, 40, 128, BRAIN),
        (2, 1024, 40, 128, HALF),
        *([(8, 11008, 4096, 128, BRAIN), (16, 4096, 512, 128, HALF)] if GPU else []),
    ],
)
def test_int4_kernel(triton_kernels, M, K, N, group, zeros, dtype):
    w4a16 = triton_kernels["w4a16"]
    codes, scale, zero, exact = four_bits(N, K, group, zeros, dtype)
    packed = Int4Weight.from_codes(codes.to(DEVICE), scale.to(DEVICE), None if zero is None else zero.to(DEVICE))
    x, bias = inputs(M, K, 0, dtype), torch.linspace(-3, 3, N).to(dtype).to(DEVICE)
    expected = x.double() @ exact.to(DEVICE).T + bias.double()
    for share in (None, w4a16.Share(16, 1, 2, 2), w4a16.Share(32, 2, 4, 3)):
        for _ in range(2):  # the second time finds the counters as the first left them
            y = w4a16.linear(x, packed, bias, share).double()
            assert (y - expected).norm() / expected.norm() < STEP[dtype]
            assert y.isfinite().all()


@pytest.mark.parametrize(
    ("M", "K", "block", "bits", "dtype"),
    [
        (5, 256, 256, 8, HALF),
        (3, 512, 512, 4, BRAIN),
        (7, 768, 256, 8, BRAIN),
        (2, 11008, 256, 4, HALF),
        (3, 4096, 4096, 8, BRAIN),
        (2, 5120, 1024, 8, HALF),
        *([(2048, 4096, 4096, 8, BRAIN), (500, 11008, 256, 8, BRAIN), (9, 16384, 16384, 8, HALF)] if GPU else []),
    ],
)
def test_hadamard_kernel(triton_kernels, M, K, block, bits, dtype):
    x = inputs(M, K, 2, dtype)
    codes, step = reference.quantize_hadamard(x, bits, block)
    found, found_step = triton_kernels["hadamard_quantize"].quantize(x, bits, block)
    torch.testing.assert_close(found_step, step, rtol=2.0**-15, atol=0)
    assert (found.int() - codes.int()).abs().max() <= 1
    assert (found != codes).float().mean() < 2e-3


@pytest.mark.skipif(not GPU, reason="there is no GPU here")
def test_functions_choose_the_kernels(triton_kernels):
    def launched(work):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            work()
        return " ".join(event.key for event in profile.key_averages())

    x, (w, w_absmax, _) = inputs(64, 1024), kernels.quantize_int8(weight(256, 1024))
    w8, scale8 = kernels.quantize_fp8(weight(256, 1024))
    codes, scale, _, _ = four_bits(256, 1024, 128, False)
    packed = Int4Weight.from_codes(codes.cuda(), scale.cuda())
    assert "multiply" in launched(lambda: kernels.int8_linear(x, w, w_absmax))
    assert "quantize_rows" in launched(lambda: kernels.fp8_linear(x, w8, scale8))
    assert "decode" in launched(lambda: kernels.int4_linear(x[:8], packed))
    assert "decode" not in launched(lambda: kernels.int4_linear(x, packed))
    assert "transform_rows" in launched(lambda: kernels.quantize_hadamard(x))


def test_compressed_tensors_reads_what_is_packed():  # last, because it imports Triton
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes, scale, _, _ = four_bits(16, 256, 128, False)
    stored = Int4Weight.from_codes(codes, scale).compressed_tensors()
    theirs = helpers.unpack_from_int32(stored["weight_packed"], 4, torch.Size([16, 256]))
    assert torch.equal(theirs.long(), codes - 8)
