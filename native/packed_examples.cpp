#include "packed_examples.hpp"

#include <algorithm>
#include <cstring>

namespace widedeep {
namespace {

constexpr std::int64_t kRowsAhead = 12;  // rows, which lie anywhere
constexpr std::int64_t kCountBytes = 4;

std::uint64_t mark_of(int width) noexcept {
  return width == 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * width)) - 1;
}

template <int kWidth>
std::uint64_t load_id(const std::uint8_t* from) noexcept {
  if constexpr (kWidth == 3) {
    std::uint16_t low;
    std::memcpy(&low, from, 2);
    return low | std::uint64_t{from[2]} << 16;
  } else {
    std::uint64_t id = 0;
    std::memcpy(&id, from, kWidth);  // little-endian, as the files are
    return id;
  }
}

std::uint64_t load_id(const std::uint8_t* from, int width) noexcept {
  switch (width) {
    case 1:
      return *from;
    case 2:
      return load_id<2>(from);
    case 3:
      return load_id<3>(from);
    case 4:
      return load_id<4>(from);
    default:
      return load_id<8>(from);
  }
}

void copy(void* to, const void* from, std::int64_t size) {
  if (size > 0) std::memcpy(to, from, static_cast<std::size_t>(size));
}

class Packer {
 public:
  Packer(const ExampleLayout& layout, const ExampleArrays& rows, std::vector<std::uint8_t>& bytes)
      : layout_(layout), rows_(rows), bytes_(bytes) {
    for (const int width : layout.widths) single_bytes_ += width;
  }

  std::int64_t pack(std::int64_t n, std::int64_t* starts) {
    const std::int64_t slots = layout_.n_slots();
    bytes_.reserve(static_cast<std::size_t>(n * (layout_.fixed_bytes() + single_bytes_) + 64));
    for (std::int64_t row = 0; row < n; ++row) {
      const std::size_t start = bytes_.size();
      starts[row] = static_cast<std::int64_t>(start);
      if (layout_.has_values || !pack_singles(row * slots)) {
        bytes_.resize(start);
        for (std::int64_t cell = row * slots; cell < (row + 1) * slots; ++cell) {
          const int width = layout_.widths[static_cast<std::size_t>(cell - row * slots)];
          if (!pack_cell(cell, width)) return cell;
        }
      }
      append(rows_.dense + row * layout_.n_dense, 4 * layout_.n_dense);
      append(rows_.labels + row * layout_.n_labels, 4 * layout_.n_labels);
      if (layout_.has_weight) append(rows_.weight + row, 4);
      if (layout_.has_group) append(rows_.group + row, 8);
    }
    starts[n] = static_cast<std::int64_t>(bytes_.size());
    return -1;
  }

 private:
  void append(const void* data, std::int64_t size) {
    const auto* const first = static_cast<const std::uint8_t*>(data);
    bytes_.insert(bytes_.end(), first, first + size);
  }

  // A row of which each cell holds one id that fits; false for any other one.
  bool pack_singles(std::int64_t cell) {
    const std::int64_t first = rows_.offsets[cell];
    const std::int64_t slots = layout_.n_slots();
    if (first < 0 || first + slots > rows_.n_ids) return false;
    // Whole words are written; what stands behind an id is written over.
    bytes_.resize(bytes_.size() + static_cast<std::size_t>(single_bytes_) + sizeof(std::uint64_t));
    std::uint8_t* to = bytes_.data() + bytes_.size() - single_bytes_ - sizeof(std::uint64_t);
    bool fits = true;
    for (std::int64_t slot = 0; slot < slots; ++slot) {
      const int width = layout_.widths[static_cast<std::size_t>(slot)];
      const auto id = static_cast<std::uint64_t>(rows_.ids[first + slot]);
      fits &= rows_.offsets[cell + slot + 1] == first + slot + 1 && id < mark_of(width);
      std::memcpy(to, &id, sizeof(id));
      to += width;
    }
    bytes_.resize(bytes_.size() - sizeof(std::uint64_t));
    return fits;
  }

  bool pack_cell(std::int64_t cell, int width) {
    const std::int64_t first = rows_.offsets[cell];
    const std::int64_t last = rows_.offsets[cell + 1];
    constexpr std::int64_t kMostIds = 0xffffffff;
    if (first < 0 || last < first || last > rows_.n_ids || last - first > kMostIds) return false;
    const std::uint64_t mark = mark_of(width);
    if (last - first != 1) {
      const auto count = static_cast<std::uint32_t>(last - first);
      append(&mark, width);
      append(&count, kCountBytes);
    }
    for (std::int64_t i = first; i < last; ++i) {
      const auto id = static_cast<std::uint64_t>(rows_.ids[i]);
      if (id >= mark) return false;  // an id below 0 is larger than any mark
      append(&id, width);
      if (layout_.has_values) append(rows_.values + i, 4);
    }
    return true;
  }

  const ExampleLayout& layout_;
  const ExampleArrays& rows_;
  std::vector<std::uint8_t>& bytes_;
  std::int64_t single_bytes_ = 0;
};

class Unpacker {
 public:
  Unpacker(const ExampleLayout& layout, UnpackedExamples& rows) : layout_(layout), rows_(rows) {
    single_bytes_ = layout.fixed_bytes();
    for (const int width : layout.widths) single_bytes_ += width + (layout.has_values ? 4 : 0);
  }

  std::int64_t unpack(const ExampleSpan* spans, std::int64_t n) {
    const std::int64_t slots = layout_.n_slots();
    rows_.ids.resize(static_cast<std::size_t>(n * slots));
    if (layout_.has_values) rows_.values.resize(rows_.ids.size());
    for (std::int64_t row = 0; row < n; ++row) {
      if (row + kRowsAhead < n) prefetch(spans[row + kRowsAhead]);
      const ExampleSpan span = spans[row];
      reserve(slots);
      const std::uint8_t* at = span.begin;
      if (span.end - span.begin == single_bytes_ && !layout_.has_values) {
        at = unpack_singles(row * slots, at);
        if (at == nullptr) at = unpack_cells(row * slots, span);
      } else {
        at = unpack_cells(row * slots, span);
      }
      if (at == nullptr || span.end - at != layout_.fixed_bytes()) return row;
      copy(rows_.dense + row * layout_.n_dense, at, 4 * layout_.n_dense);
      at += 4 * layout_.n_dense;
      copy(rows_.labels + row * layout_.n_labels, at, 4 * layout_.n_labels);
      at += 4 * layout_.n_labels;
      if (layout_.has_weight) {
        std::memcpy(rows_.weight + row, at, 4);
        at += 4;
      }
      if (layout_.has_group) std::memcpy(rows_.group + row, at, 8);
    }
    rows_.offsets[n * slots] = n_ids_;
    rows_.ids.resize(static_cast<std::size_t>(n_ids_));
    if (layout_.has_values) rows_.values.resize(rows_.ids.size());
    return -1;
  }

 private:
  static void prefetch(const ExampleSpan& span) {
    for (const std::uint8_t* at = span.begin; at < span.end; at += 64) __builtin_prefetch(at);
  }

  void reserve(std::int64_t more) {
    const auto needed = static_cast<std::size_t>(n_ids_ + more);
    if (needed <= rows_.ids.size()) return;
    rows_.ids.resize(std::max(needed, 2 * rows_.ids.size()));
    if (layout_.has_values) rows_.values.resize(rows_.ids.size());
  }

  // A row whose length is that of single ids; null if it holds a mark all the same.
  const std::uint8_t* unpack_singles(std::int64_t cell, const std::uint8_t* at) {
    std::int64_t* const ids = rows_.ids.data() + n_ids_;
    std::int64_t* const offsets = rows_.offsets + cell;
    const auto slots = layout_.widths.size();
    bool has_mark = false;
    for (std::size_t slot = 0; slot < slots; ++slot) {
      const int width = layout_.widths[slot];
      const std::uint64_t id = load_id(at, width);
      has_mark |= id == mark_of(width);
      ids[slot] = static_cast<std::int64_t>(id);
      offsets[slot] = n_ids_ + static_cast<std::int64_t>(slot);
      at += width;
    }
    if (has_mark) return nullptr;
    n_ids_ += static_cast<std::int64_t>(slots);
    return at;
  }

  // Cells of any number of ids; null if they leave the span.
  const std::uint8_t* unpack_cells(std::int64_t cell, const ExampleSpan& span) {
    const std::uint8_t* at = span.begin;
    for (const int width : layout_.widths) {
      rows_.offsets[cell++] = n_ids_;
      if (span.end - at < width) return nullptr;
      std::uint32_t count = 1;
      if (load_id(at, width) == mark_of(width)) {
        at += width;
        if (span.end - at < kCountBytes) return nullptr;
        std::memcpy(&count, at, kCountBytes);
        at += kCountBytes;
      }
      const std::int64_t item = width + (layout_.has_values ? 4 : 0);
      if ((span.end - at) / item < count) return nullptr;
      reserve(count);
      for (std::uint32_t i = 0; i < count; ++i, at += item, ++n_ids_) {
        const auto to = static_cast<std::size_t>(n_ids_);
        rows_.ids[to] = static_cast<std::int64_t>(load_id(at, width));
        if (layout_.has_values) std::memcpy(&rows_.values[to], at + width, 4);
      }
    }
    return at;
  }

  const ExampleLayout& layout_;
  UnpackedExamples& rows_;
  std::int64_t single_bytes_;
  std::int64_t n_ids_ = 0;
};

}  // namespace

std::int64_t pack_examples(const ExampleLayout& layout, const ExampleArrays& rows, std::int64_t n,
                           std::vector<std::uint8_t>& bytes, std::int64_t* starts) {
  return Packer(layout, rows, bytes).pack(n, starts);
}

std::int64_t unpack_examples(const ExampleLayout& layout, const ExampleSpan* spans, std::int64_t n,
                             UnpackedExamples& rows) {
  return Unpacker(layout, rows).unpack(spans, n);
}

}  // namespace widedeep
