// What the kernels of wide perceptrons share: the plan that Python makes (ops/wide_mlp_layout.py, ops/wide_mlp_pieces.py),
// and how rows are kept.
//
// 64 rows are a group. Of each group, a matrix of 64 k columns is kept as k blocks as in hopper.cuh, one after the other, and
// the groups after each other: one bulk copy brings a group's whole matrix. "Inputs" are all input tensors side by side, each
// padded to whole blocks; "hidden" are the outputs of hidden layers.
#pragma once
#include "hopper.cuh"

namespace lightning_nerf::wide_mlp {

using hopper::kBlockBytes;

constexpr int kGroupRows = hopper::kBlockRows;
constexpr int kGroups = 2;  // that a block of threads takes at a time
constexpr int kMaxLayers = 24;
constexpr int kMaxOutputs = 256;  // of a layer, padded
constexpr int kHiddenBlocks = kMaxOutputs / hopper::kBlockColumns;

// One matrix product of a chain over a group's rows, as ints in the plan.
struct Link {
  int width;                      // of the result, padded: 8, 64, 128 or 256
  int hidden_blocks;              // of the operand, from the result before
  int input_first, input_blocks;  // of the operand, from the inputs
  int slot;     // hidden: blocks of one group in front of this result's in what is saved; head: first column in y
  int outputs;  // 0: hidden; else a head, and how many of its results are outputs; backward: columns of the input's gradient
  int bias;     // index of the first bias; backward: unused
  int adds;     // head: whether its results are added to what y holds
};

// A product dZ^T H of a share of all groups, added up by one block of threads: a piece of a weight's gradient.
struct Item {
  int a_kind, a_slot, a_stride, a_blocks;  // dZ of a layer or of the heads: 1 or 2 blocks; slot and stride in blocks
  int b_kind, b_slot, b_stride, b_blocks;  // hidden or inputs: 1, 2 or 4 blocks
  int first, splits;                       // the blocks of threads that share it
  int unused[2];
};

constexpr int kItemRows = 2 * kGroupRows;
constexpr int kPieceSize = kItemRows * kMaxOutputs + kItemRows;  // and behind the products the sums of dZ

}  // namespace lightning_nerf::wide_mlp
