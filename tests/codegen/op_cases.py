"""One graph per op family, as IR text: what every target runs and compares with float64."""

CASES = {
    "steps": """
graph steps(%x: f32[B,5,40]) {
  weight %w: f32[48,40]
  weight %b: f32[48]
  weight %row: f32[5,1]
  weight %table: f32[1,5,48]
  weight %full: f32[48]
  %a = linear(%x, %w, %b) {steps=[add($2), gelu]}
  %c = linear(%x, %w, %a, %table) {steps=[scale(0.3), add($3), silu, mul($2), shift(0.5)]}
  %d = linear(%x, %w, %row, %c) {steps=[quick_gelu, add($2), sub($3), hardswish]}
  %e = pointwise(%d, %a, %b) {steps=[gelu_tanh, mul($1), rsub($2), relu]}
  %f = pointwise(%e) {steps=[clamp_max(2.0), clamp_min(-1.0), square, exp, sigmoid, tanh]}
  %g = pointwise(%f) {steps=[shift(1.0), sqrt, rsqrt, reciprocal, abs, neg, hardsigmoid]}
  %h = pointwise(%c, %a) {steps=[maximum($1), pow(2.0), shift(1.0), rdiv($1)]}
  %i = pointwise(%h, %g) {steps=[minimum($1), div($1)]}
  return %a, %c, %d, %e, %f, %g, %h, %i
}""",
    "statistics": """
graph statistics(%x: f32[B,7,40]) {
  weight %w: f32[104,40]
  weight %g: f32[40]
  weight %v: f32[33,104]
  weight %b: f32[33]
  %a, %s = linear(%x, %w) {stats=64}
  %c = linear(%a, %v, %s, %b) {steps=[row_rstd($2, 104.0, 1e-6), add($3)]}
  %one = move(%a) {map=map([B,7,104], slice(1, 2, 3, 1), reshape([B,104]))}
  %sone = move(%s) {map=map([B,7,2], slice(1, 2, 3, 1), reshape([B,2]))}
  %d = linear(%one, %v, %sone) {steps=[row_rstd($2, 104.0, 1e-6)]}
  %n, %ns = norm(%x, %g) {steps=[mul($1)], stats=32, recenter=true}
  %p, %ps = pointwise(%a) {stats=64}
  return %a, %c, %d, %n, %ns, %ps
}""",
    "moments": """
graph moments(%x: f32[B,6,8,40]) {
  weight %w: f32[104,40]
  weight %v: f32[33,104]
  weight %u: f32[24,416]
  weight %g: f32[40]
  %a, %s = linear(%x, %w) {steps=[shift(0.5)], stats=64, sums=true}
  %c = linear(%a, %v, %s) {steps=[layer_rstd($2, 104.0, 1e-6)]}
  %m = move(%a) {map=map([B,6,8,104], reshape([B,3,2,4,2,104]), permute([0,1,3,4,2,5]), reshape([B,3,4,416]))}
  %ms = move(%s) {map=map([B,6,8,4], reshape([B,3,2,4,2,4]), permute([0,1,3,4,2,5]), reshape([B,3,4,16]))}
  %d = linear(%m, %u, %ms) {steps=[layer_rstd($2, 416.0, 1e-6)]}
  %n, %ns = norm(%x, %g) {steps=[mul($1)], stats=32, sums=true}
  %r, %rs = norm(%x, %g) {steps=[mul($1)], stats=32, recenter=true, sums=true}
  %p, %ps = pointwise(%a) {stats=64, sums=true}
  return %c, %d, %ns, %ps, %rs
}""",
    "maps": """
graph maps(%x: f32[B,3,32,48]) {
  weight %w: f32[64,768]
  weight %table: f32[7,64]
  weight %v: f32[10,64]
  %m = move(%x) {map=map([B,3,32,48], reshape([B,3,2,16,3,16]), permute([0,2,4,1,3,5]), reshape([B,6,768]), pad(1,1,0))}
  %y = linear(%m, %w, %table) {steps=[add($2)]}
  %cls = move(%y) {map=map([B,7,64], slice(1,0,1,1), reshape([B,64]))}
  %z = linear(%cls, %v)
  %r = move(%y) {map=map([B,7,64], slice(1,1,7,1), reshape([B,2,3,64]), roll(1,1), roll(2,-1))}
  %q = linear(%r, %v)
  %t = move(%q) {map=map([B,2,3,10], permute([0,2,1,3]), reshape([B,6,10]))}
  %u = move(%x) {map=map([B,3,32,48], permute([0,2,3,1]))}
  %e = move(%v) {map=map([10,64], expand([B,10,64]))}
  %cls2 = move(%cls) {map=map([B,64], reshape([B,1,64]))}
  %k = concat(%e, %y, %cls2) {axis=1}
  return %y, %z, %t, %u, %k
}""",
    "grid": """
graph grid(%x: f32[B,6,8,40], %i: f32[B,3,12,16]) {
  weight %w: f32[104,40]
  weight %v: f32[33,416]
  weight %u: f32[24,104]
  weight %e: f32[20,48]
  %a, %s = linear(%x, %w) {stats=64}
  %m = move(%a) {map=map([B,6,8,104], reshape([B,3,2,4,2,104]), permute([0,1,3,4,2,5]), reshape([B,3,4,416]))}
  %ms = move(%s) {map=map([B,6,8,2], reshape([B,3,2,4,2,2]), permute([0,1,3,4,2,5]), reshape([B,3,4,8]))}
  %c = linear(%m, %v, %ms) {steps=[row_rstd($2, 416.0, 1e-6)]}
  %d = norm(%m) {eps=1e-5}
  %p = move(%a) {map=map([B,6,8,104], pad(1,0,1), pad(2,0,1), roll(1,-2), reshape([B,7,3,3,104]), permute([0,2,1,3,4]))}
  %f = linear(%p, %u) {steps=[shift(1.0)]}
  %fm = move(%f) {map=map([B,3,7,3,24], permute([0,2,1,3,4]), reshape([B,7,9,24]), roll(1,2))}
  %g = move(%a) {map=map([B,6,8,104], slice(1,0,6,2), slice(2,0,8,2), reshape([B,12,104]))}
  %h = linear(%g, %u)
  %q = move(%i) {map=map([B,3,12,16], reshape([B,3,3,4,4,4]), permute([0,2,4,1,3,5]), reshape([B,3,4,48]))}
  %k = linear(%q, %e)
  return %c, %d, %fm, %h, %k
}""",
    "attention": """
graph attention(%x: f32[B,37,72], %z: f32[B,5,48]) {
  weight %bias: f32[3,37,37]
  weight %latent: f32[1,3,2,8]
  %q = move(%x) {map=map([B,37,72], reshape([B,37,3,3,8]), permute([2,0,3,1,4]), slice(0,0,1,1), reshape([B,3,37,8]))}
  %k = move(%x) {map=map([B,37,72], reshape([B,37,3,3,8]), permute([2,0,3,1,4]), slice(0,1,2,1), reshape([B,3,37,8]))}
  %v = move(%x) {map=map([B,37,72], reshape([B,37,3,3,8]), permute([2,0,3,1,4]), slice(0,2,3,1), reshape([B,3,37,8]))}
  %a = attention(%q, %k, %v) {scale=0.35}
  %am = move(%a) {map=map([B,3,37,8], permute([0,2,1,3]), reshape([B,37,24]))}
  %b = attention(%q, %k, %v, %bias) {scale=0.35, bias=true}
  %l = move(%latent) {map=map([1,3,2,8], expand([B,3,2,8]))}
  %c = attention(%l, %k, %v) {scale=0.35}
  %c2 = attention(%latent, %k, %v) {scale=0.35}
  %vv = move(%z) {map=map([B,5,48], reshape([B,5,3,16]), permute([0,2,1,3]))}
  %kk = move(%q) {map=map([B,3,37,8], slice(2,0,5,1))}
  %d = attention(%q, %kk, %vv)
  return %am, %b, %c, %c2, %d
}""",
    "window_attention": """
graph window_attention(%x: f32[B,8,6,72], %y: f32[B,7,5,72]) {
  weight %bias: f32[3,12,12]
  weight %factors: f32[3]
  %regions = literal() {shape=[4, 12], dtype=i32, data="eNpjYCANMEIxE5FsZhyYDQdmgWJWNDY7FHOgsQEdSACN"}
  %wx = move(%x) {map=map([B,8,6,72], roll(1,-2), roll(2,-1), reshape([B,2,4,2,3,72]), permute([0,1,3,2,4,5]), reshape([4B,12,3,3,8]), permute([2,0,3,1,4]))}
  %q = move(%wx) {map=map([3,4B,3,12,8], slice(0,0,1,1), reshape([4B,3,12,8]))}
  %k = move(%wx) {map=map([3,4B,3,12,8], slice(0,1,2,1), reshape([4B,3,12,8]))}
  %v = move(%wx) {map=map([3,4B,3,12,8], slice(0,2,3,1), reshape([4B,3,12,8]))}
  %a = attention(%q, %k, %v, %bias, %regions) {scale=0.35, bias=true, regions=true}
  %am = move(%a) {map=map([4B,3,12,8], permute([0,2,1,3]), reshape([B,2,2,4,3,24]), permute([0,1,3,2,4,5]), reshape([B,8,6,24]), roll(1,2), roll(2,1))}
  %c = attention(%q, %k, %v, %bias, %regions, %factors) {bias=true, regions=true, factors=true, cosine=1e-12}
  %cm = move(%c) {map=map([4B,3,12,8], permute([0,2,1,3]), reshape([B,2,2,4,3,24]), permute([0,1,3,2,4,5]), reshape([B,8,6,24]))}
  %n = attention(%q, %k, %v, %factors) {factors=true, cosine=1e-12}
  %nm = move(%n) {map=map([4B,3,12,8], reshape([B,4,3,12,8]))}
  %wy = move(%y) {map=map([B,7,5,72], pad(1,0,1), pad(2,0,1), reshape([B,2,4,2,3,72]), permute([0,1,3,2,4,5]), reshape([4B,12,3,3,8]), permute([2,0,3,1,4]))}
  %qy = move(%wy) {map=map([3,4B,3,12,8], slice(0,0,1,1), reshape([4B,3,12,8]))}
  %ky = move(%wy) {map=map([3,4B,3,12,8], slice(0,1,2,1), reshape([4B,3,12,8]))}
  %vy = move(%wy) {map=map([3,4B,3,12,8], slice(0,2,3,1), reshape([4B,3,12,8]))}
  %p = attention(%qy, %ky, %vy, %bias) {scale=0.35, bias=true}
  %pm = move(%p) {map=map([4B,3,12,8], permute([0,2,1,3]), reshape([B,2,2,4,3,24]), permute([0,1,3,2,4,5]), reshape([B,8,6,24]), slice(1,0,7,1), slice(2,0,5,1))}
  return %am, %cm, %nm, %pm
}""",
    "levit_attention": """
graph levit_attention(%x: f32[B,16,192], %y: f32[B,9,32]) {
  weight %bias: f32[2,16,16]
  weight %few: f32[2,9,16]
  %q = move(%x) {map=map([B,16,192], reshape([B,16,2,96]), slice(3,0,16,1), permute([0,2,1,3]))}
  %k = move(%x) {map=map([B,16,192], reshape([B,16,2,96]), slice(3,16,32,1), permute([0,2,1,3]))}
  %v = move(%x) {map=map([B,16,192], reshape([B,16,2,96]), slice(3,32,96,1), permute([0,2,1,3]))}
  %a = attention(%q, %k, %v, %bias) {scale=0.25, bias=true, steps=[hardswish]}
  %am = move(%a) {map=map([B,2,16,64], permute([0,2,1,3]), reshape([B,16,128]))}
  %s = move(%y) {map=map([B,9,32], reshape([B,9,2,16]), permute([0,2,1,3]))}
  %b = attention(%s, %k, %v, %few) {scale=0.25, bias=true, steps=[gelu]}
  %bm = move(%b) {map=map([B,2,9,64], permute([0,2,1,3]), reshape([B,9,128]))}
  return %am, %bm
}""",
    "rows": """
graph rows(%x: f32[B,6,6,24]) {
  weight %g: f32[24]
  weight %b: f32[24]
  %n = norm(%x, %g, %b) {eps=1e-5, steps=[mul($1), add($2)]}
  %r = norm(%x, %g) {kind="rms", steps=[mul($1), gelu]}
  %h = move(%x) {map=map([B,6,6,24], reshape([B,36,3,8]), permute([0,2,1,3]))}
  %hn = norm(%h) {eps=1e-5}
  %s = softmax(%x)
  %gn = group_norm(%x, %g, %b) {groups=3, steps=[mul($1), add($2), relu]}
  %m = reduce(%x) {axes=[1,2]}
  %mk = reduce(%x, %b) {axes=[1,2], keepdims=true, kind="max", steps=[add($1)]}
  %l = reduce(%x) {axes=[-1], kind="sum"}
  %h2 = reduce(%h) {axes=[2]}
  return %n, %r, %hn, %s, %gn, %m, %mk, %l, %h2
}""",
    "windows": """
graph windows(%x: f32[B,13,11,8]) {
  weight %w: f32[12,3,3,8]
  weight %b: f32[12]
  weight %wg: f32[12,3,3,4]
  weight %wd: f32[8,5,5,1]
  weight %w1: f32[16,1,1,8]
  %c = conv2d(%x, %w, %b) {stride=[2,2], padding=[1,1,1,1], steps=[add($2), hardswish]}
  %s = conv2d(%x, %w) {stride=[2,1], padding=[0,1,0,2], dilation=[2,1]}
  %g = conv2d(%x, %wg) {groups=2, padding=[1,1,1,1]}
  %d = conv2d(%x, %wd) {groups=8, padding=[2,2,2,2], steps=[relu]}
  %o = conv2d(%x, %w1)
  %p = pool2d(%x) {kernel=[3,3], stride=[2,2], padding=[1,1,1,1]}
  %a = pool2d(%x) {kind="avg", kernel=[3,2], stride=[2,2], padding=[1,1,0,1], count_padding=false}
  %q = pool2d(%x) {kind="avg", kernel=[2,2], stride=[2,2], padding=[0,1,0,1]}
  return %c, %s, %g, %d, %o, %p, %a, %q
}""",
    "stem": """
graph stem(%x: f32[B,3,17,30]) {
  weight %w: f32[70,3,3,3]
  weight %b: f32[70]
  weight %v: f32[24,7,7,3]
  %n = move(%x) {map=map([B,3,17,30], permute([0,2,3,1]))}
  %c = conv2d(%n, %w, %b) {stride=[2,2], padding=[1,1,1,1], steps=[add($2), hardswish]}
  %d = conv2d(%n, %v) {stride=[2,2], padding=[2,3,2,3], steps=[gelu]}
  return %c, %d
}""",
    "products": """
graph products(%x: f32[B,3,10,8], %y: f32[B,3,12,8]) {
  weight %k: f32[8,9]
  %yt = move(%y) {map=map([B,3,12,8], permute([0,1,3,2]))}
  %a = matmul(%x, %yt) {steps=[scale(0.5)]}
  %b = matmul(%a, %y)
  %c = matmul(%x, %k)
  %xt = move(%x) {map=map([B,3,10,8], permute([0,2,1,3]))}
  %d = matmul(%xt, %k)
  return %a, %b, %c, %d
}""",
}
