// Real spherical harmonics with the Condon-Shortley phase: Sloan, "Efficient Spherical Harmonic Evaluation", JCGT 2013.
#pragma once
#include <type_traits>

#include "host_device.cuh"

// The loops over (l, m) must unroll, or the coefficients live in memory.
#ifdef __CUDACC__
#define LN_UNROLL _Pragma("unroll")
#else
#define LN_UNROLL _Pragma("GCC unroll 8")
#endif

namespace lightning_nerf::spherical_harmonics {

constexpr int kMaxDegree = 5;
constexpr int kLegendre = kMaxDegree * (kMaxDegree + 1) / 2;  // pairs (l, m), 0 <= m <= l < 5, at l (l + 1) / 2 + m

// Y_lm = p_lm(z) * Re (x + iy)^m and Y_l,-m = p_lm(z) * Im (x + iy)^m on the unit sphere: p and its derivative.
LN_HD void legendre(float z, float* p, float* dp) {  // p, dp [kLegendre]
  const float zz = z * z;
  p[0] = 0.28209479177387814f;      // 1 / sqrt(4 pi)
  p[1] = 0.48860251190291992f * z;  // l = 1
  p[2] = -0.48860251190291992f;
  p[3] = 0.31539156525252005f * (3.0f * zz - 1.0f);  // l = 2
  p[4] = -1.09254843059207907f * z;
  p[5] = 0.54627421529603953f;
  p[6] = 0.37317633259011540f * z * (5.0f * zz - 3.0f);  // l = 3
  p[7] = -0.45704579946446572f * (5.0f * zz - 1.0f);
  p[8] = 1.44530572132027735f * z;
  p[9] = -0.59004358992664352f;
  p[10] = 0.10578554691520430f * (zz * (35.0f * zz - 30.0f) + 3.0f);  // l = 4
  p[11] = -0.66904654355728917f * z * (7.0f * zz - 3.0f);
  p[12] = 0.47308734787878002f * (7.0f * zz - 1.0f);
  p[13] = -1.77013076977993053f * z;
  p[14] = 0.62583573544917613f;
  dp[0] = 0.0f;
  dp[1] = 0.48860251190291992f;
  dp[2] = 0.0f;
  dp[3] = 1.89234939151512032f * z;
  dp[4] = -1.09254843059207907f;
  dp[5] = 0.0f;
  dp[6] = 0.37317633259011540f * (15.0f * zz - 3.0f);
  dp[7] = -4.57045799464465720f * z;
  dp[8] = 1.44530572132027735f;
  dp[9] = 0.0f;
  dp[10] = 0.10578554691520430f * z * (140.0f * zz - 60.0f);
  dp[11] = -0.66904654355728917f * (21.0f * zz - 3.0f);
  dp[12] = 6.62322287030292028f * z;
  dp[13] = -1.77013076977993053f;
  dp[14] = 0.0f;
}

// A direction of length 1, or 0 where the direction's length is 0, not finite, or its square no normal float.
struct UnitDirection {
  float x, y, z;
  float inverse_length;  // 0: no direction

  LN_HD explicit UnitDirection(const float* direction) {  // [3]
    const float a = direction[0], b = direction[1], c = direction[2];
    const float squared = a * a + b * b + c * c;
    const bool valid = squared >= 1.17549435e-38f && squared <= 3.40282347e+38f;
    inverse_length = valid ? 1.0f / sqrtf(squared) : 0.0f;
    x = valid ? a * inverse_length : 0.0f;
    y = valid ? b * inverse_length : 0.0f;
    z = valid ? c * inverse_length : 0.0f;
  }
};

// A row of the result: Y_lm at l^2 + l + m.
template <int Degree>
LN_HD void row(const float* direction, float* out) {  // direction [3], out [Degree^2]
  const UnitDirection u(direction);
  float p[kLegendre], dp[kLegendre];
  legendre(u.z, p, dp);
  float re = 1.0f, im = 0.0f;  // (x + iy)^m
  LN_UNROLL for (int m = 0; m < Degree; ++m) {
    LN_UNROLL for (int l = m; l < Degree; ++l) {
      const float factor = l == 0 || u.inverse_length > 0.0f ? p[l * (l + 1) / 2 + m] : 0.0f;
      if (m > 0) out[l * l + l - m] = factor * im;
      out[l * l + l + m] = factor * re;
    }
    const float next = u.x * re - u.y * im;
    im = u.x * im + u.y * re;
    re = next;
  }
}

// d loss / d direction from grad = d loss / d out: the gradient on the sphere over the direction's length.
template <int Degree>
LN_HD void row_backward(const float* grad, const float* direction, float* out) {  // grad [Degree^2], direction [3], out [3]
  const UnitDirection u(direction);
  float p[kLegendre], dp[kLegendre];
  legendre(u.z, p, dp);
  float gx = 0.0f, gy = 0.0f, gz = 0.0f;
  float re = 1.0f, im = 0.0f, lower_re = 0.0f, lower_im = 0.0f;  // (x + iy)^m and m (x + iy)^(m-1)
  LN_UNROLL for (int m = 0; m < Degree; ++m) {
    LN_UNROLL for (int l = m; l < Degree; ++l) {
      const float g_re = grad[l * l + l + m], g_im = m > 0 ? grad[l * l + l - m] : 0.0f;
      const float value = p[l * (l + 1) / 2 + m], slope = dp[l * (l + 1) / 2 + m];
      gx += value * (g_re * lower_re + g_im * lower_im);
      gy += value * (g_im * lower_re - g_re * lower_im);
      gz += slope * (g_re * re + g_im * im);
    }
    lower_re = float(m + 1) * re;
    lower_im = float(m + 1) * im;
    const float next = u.x * re - u.y * im;
    im = u.x * im + u.y * re;
    re = next;
  }
  const float radial = gx * u.x + gy * u.y + gz * u.z;
  out[0] = (gx - radial * u.x) * u.inverse_length;
  out[1] = (gy - radial * u.y) * u.inverse_length;
  out[2] = (gz - radial * u.z) * u.inverse_length;
}

// body(Degree) with the degree as a compile-time constant; false where there is no kernel for it.
template <typename Body>
bool for_degree(int64_t degree, const Body& body) {
  switch (degree) {
    case 1: return body(std::integral_constant<int, 1>()), true;
    case 2: return body(std::integral_constant<int, 2>()), true;
    case 3: return body(std::integral_constant<int, 3>()), true;
    case 4: return body(std::integral_constant<int, 4>()), true;
    case 5: return body(std::integral_constant<int, 5>()), true;
    default: return false;
  }
}

}  // namespace lightning_nerf::spherical_harmonics
