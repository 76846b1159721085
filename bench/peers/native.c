// Layout A in native C: the kernel's own page tables, 512 entries of 8 bytes, zapped and aged in two ways.
//
// tdp_iter: one step per entry, as arch/x86/kvm/mmu/tdp_iter.c walks: down, else sideways, else up.
// nested: plain nested loops, as a good C programmer would write them. Empty entries of a table are
// passed over with all below them, whole tables take a loop without branches that the compiler turns into vector code, and sptes are
// written with plain stores.
//
// Both work on the same tables and count the same things. Tables stay when their leaves go, as tdp_mmu_zap_leafs()
// keeps them. Driven by bench/peers/native.ts: one command a line on stdin, one line of answers on stdout, times taken
// here. The pattern of pages is a hash of gfn and seed, the same in every contender (bench/workloads.ts).

#define _GNU_SOURCE
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define ENTRIES 512
// Bits of an spte, where Intel's EPT has them.
#define SPTE_READABLE (1ull << 0)
#define SPTE_WRITABLE (1ull << 1)
#define SPTE_EXECUTABLE (1ull << 2)
#define SPTE_HUGE (1ull << 7)
#define SPTE_ACCESSED (1ull << 8)
#define SPTE_DIRTY (1ull << 9)
#define SPTE_PRESENT (1ull << 11)
#define SPTE_PFN_MASK 0x000ffffffffff000ull

typedef uint64_t u64;
typedef uint32_t u32;

static u64 pages;
static u32 root_level;
static u64 *root;
static char *arena;
static u64 arena_used, arena_size;

static u64 now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (u64)at.tv_sec * 1000000000ull + (u64)at.tv_nsec;
}

static u64 *alloc_table(void) {
  u64 *table = (u64 *)(arena + arena_used);
  arena_used += 4096;
  if (arena_used > arena_size) {
    fprintf(stderr, "native: out of tables\n");
    exit(1);
  }
  return table;
}

static inline u64 *table_of(u64 spte) { return (u64 *)(arena + (spte & SPTE_PFN_MASK)); }
static inline u64 table_spte(u64 *table) {
  return (u64)((char *)table - arena) | SPTE_READABLE | SPTE_WRITABLE | SPTE_EXECUTABLE | SPTE_PRESENT;
}
static inline int is_leaf(u64 spte, int level) { return level == 1 || (spte & SPTE_HUGE); }
static inline u64 pages_of(int level) { return 1ull << (9 * (level - 1)); }
static inline u32 index_of(u64 gfn, int level) { return (gfn >> (9 * (level - 1))) & 511; }

// --- What the walks count ------------------------------------------------------------------------------------------

struct counts {
  u64 leafs, accessed, dirty;
};

static inline void count_leaf(struct counts *counts, u64 spte) {
  counts->leafs += (spte >> 11) & 1;
  counts->accessed += (spte >> 8) & 1;
  counts->dirty += (spte >> 9) & 1;
}

// --- tdp_iter ------------------------------------------------------------------------------------------------------

struct tdp_iter {
  u64 *pt_path[6];
  u64 *sptep;
  u64 old_spte;
  u64 gfn, next_last_level_gfn;
  int level, root_level, min_level;
  int valid;
};

static inline void iter_reset_sptep(struct tdp_iter *iter) {
  iter->sptep = iter->pt_path[iter->level] + index_of(iter->gfn, iter->level);
  iter->old_spte = *(volatile u64 *)iter->sptep;
}
static void iter_start(struct tdp_iter *iter, u64 start) {
  iter->root_level = (int)root_level;
  iter->min_level = 1;
  iter->next_last_level_gfn = start;
  iter->pt_path[root_level] = root;
  iter->level = (int)root_level;
  iter->gfn = start & ~(pages_of(iter->level) - 1);
  iter->valid = 1;
  iter_reset_sptep(iter);
}
static inline int try_step_down(struct tdp_iter *iter) {
  if (iter->level == iter->min_level) return 0;
  iter->old_spte = *(volatile u64 *)iter->sptep;
  if (!(iter->old_spte & SPTE_PRESENT) || is_leaf(iter->old_spte, iter->level)) return 0;
  u64 *child = table_of(iter->old_spte);
  iter->level--;
  iter->pt_path[iter->level] = child;
  iter->gfn = iter->next_last_level_gfn & ~(pages_of(iter->level) - 1);
  iter_reset_sptep(iter);
  return 1;
}
static inline int try_step_side(struct tdp_iter *iter) {
  if (index_of(iter->gfn, iter->level) == ENTRIES - 1) return 0;
  iter->gfn += pages_of(iter->level);
  iter->next_last_level_gfn = iter->gfn;
  iter->sptep++;
  iter->old_spte = *(volatile u64 *)iter->sptep;
  return 1;
}
static inline int try_step_up(struct tdp_iter *iter) {
  if (iter->level == iter->root_level) return 0;
  iter->level++;
  iter->gfn &= ~(pages_of(iter->level) - 1);
  iter_reset_sptep(iter);
  return 1;
}
static inline void iter_next(struct tdp_iter *iter) {
  if (try_step_down(iter)) return;
  do {
    if (try_step_side(iter)) return;
  } while (try_step_up(iter));
  iter->valid = 0;
}

static __attribute__((noinline)) struct counts iter_zap(u64 start, u64 end) {
  struct counts counts = {0, 0, 0};
  struct tdp_iter iter;
  for (iter_start(&iter, start); iter.valid && iter.gfn < end; iter_next(&iter)) {
    if (!(iter.old_spte & SPTE_PRESENT) || !is_leaf(iter.old_spte, iter.level)) continue;
    count_leaf(&counts, iter.old_spte);
    *iter.sptep = 0;
  }
  return counts;
}
static __attribute__((noinline)) struct counts iter_age(u64 start, u64 end) {
  struct counts counts = {0, 0, 0};
  struct tdp_iter iter;
  for (iter_start(&iter, start); iter.valid && iter.gfn < end; iter_next(&iter)) {
    if (!(iter.old_spte & SPTE_ACCESSED) || !is_leaf(iter.old_spte, iter.level)) continue;
    counts.accessed++;
    *iter.sptep = iter.old_spte & ~SPTE_ACCESSED;
  }
  return counts;
}

// --- nested --------------------------------------------------------------------------------------------------------

// A full table: no branch in the loop, so that it runs at the speed of memory.
static inline void zap_table(u64 *restrict table, u32 from, u32 to, struct counts *counts) {
  u64 leafs = 0, accessed = 0, dirty = 0;
  for (u32 at = from; at < to; at++) {
    u64 spte = table[at];
    leafs += (spte >> 11) & 1;
    accessed += (spte >> 8) & 1;
    dirty += (spte >> 9) & 1;
    table[at] = 0;
  }
  counts->leafs += leafs;
  counts->accessed += accessed;
  counts->dirty += dirty;
}
static inline void age_table(u64 *restrict table, u32 from, u32 to, struct counts *counts) {
  u64 accessed = 0;
  for (u32 at = from; at < to; at++) {
    u64 spte = table[at];
    accessed += (spte >> 8) & 1;
    table[at] = spte & ~SPTE_ACCESSED;
  }
  counts->accessed += accessed;
}

static void nested(u64 *table, int level, u64 start, u64 end, int age, struct counts *counts) {
  u32 from = index_of(start, level);
  u32 to = index_of(end - 1, level) + 1;
  if (level == 1) {
    if (from == 0 && to == ENTRIES) {
      if (age) age_table(table, 0, ENTRIES, counts);
      else zap_table(table, 0, ENTRIES, counts);
    } else {
      if (age) age_table(table, from, to, counts);
      else zap_table(table, from, to, counts);
    }
    return;
  }
  u64 size = pages_of(level);
  u64 at = start;
  for (u32 index = from; index < to; index++) {
    u64 next = (at & ~(size - 1)) + size;
    if (next > end) next = end;
    u64 spte = table[index];
    if (spte & SPTE_PRESENT) {
      if (spte & SPTE_HUGE) {
        if (age) {
          counts->accessed += (spte >> 8) & 1;
          table[index] = spte & ~SPTE_ACCESSED;
        } else {
          count_leaf(counts, spte);
          table[index] = 0;
        }
      } else {
        nested(table_of(spte), level - 1, at, next, age, counts);
      }
    }
    at = next;
  }
}

// --- Building ------------------------------------------------------------------------------------------------------

// The hash of bench/workloads.ts.
static inline u32 hash(u32 gfn, u32 seed) {
  u32 x = gfn * 0x9e3779b1u + seed;
  x = (x ^ (x >> 16)) * 0x85ebca6bu;
  x = (x ^ (x >> 13)) * 0xc2b2ae35u;
  return x ^ (x >> 16);
}

#define DENSITY_FULL 0
#define DENSITY_HALF 1
#define DENSITY_FRAGMENTED 2

static u64 leaf_of(u64 gfn, u32 density, u32 seed) {
  u64 spte = (gfn << 12) & SPTE_PFN_MASK;
  spte |= SPTE_PRESENT | SPTE_READABLE | SPTE_WRITABLE | SPTE_EXECUTABLE | SPTE_DIRTY;
  if (density == DENSITY_FULL) return spte | SPTE_ACCESSED;
  u32 bits = hash((u32)gfn, seed);
  if (density == DENSITY_HALF && !(bits & 1)) return 0;
  // Fragmented: of each 16 pages a run is missing.
  if (density == DENSITY_FRAGMENTED && (hash((u32)(gfn >> 4), seed) & 3) == 0) return 0;
  return bits & 2 ? spte | SPTE_ACCESSED : spte;
}

static int leaf_level;
// LEAVES_MIXED: the lower half of the guest in 2M leaves, the upper in 4K.
#define LEAVES_MIXED 3
static inline int leaf_level_at(u64 gfn) { return leaf_level == LEAVES_MIXED ? (gfn < pages / 2 ? 2 : 1) : leaf_level; }

static void build(u64 npages, int leaves) {
  if (arena != NULL) munmap(arena, arena_size);
  pages = npages;
  leaf_level = leaves;
  root_level = npages > (1ull << 36) ? 5 : 4;
  u64 tables = 8;
  for (int level = leaves == 2 ? 2 : 1; level <= (int)root_level; level++) tables += npages / pages_of(level + 1) + 2;
  arena_size = tables * 4096;
  arena_used = 0;
  arena = mmap(NULL, arena_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (arena == MAP_FAILED) {
    printf("error mmap\n");
    exit(1);
  }
  madvise(arena, arena_size, MADV_HUGEPAGE);
  root = alloc_table();
  for (u64 gfn = 0; gfn < npages; gfn += pages_of(leaf_level_at(gfn) + 1)) {
    u64 *table = root;
    for (int level = (int)root_level; level > leaf_level_at(gfn); level--) {
      u64 *sptep = table + index_of(gfn, level);
      if (*sptep == 0) *sptep = table_spte(alloc_table());
      table = table_of(*sptep);
    }
  }
}
static void fill(u32 density, u32 seed) {
  for (u64 gfn = 0; gfn < pages;) {
    u64 *table = root;
    int lowest = leaf_level_at(gfn);
    for (int level = (int)root_level; level > lowest; level--) table = table_of(table[index_of(gfn, level)]);
    for (u32 at = 0; at < ENTRIES && gfn < pages; at++, gfn += pages_of(lowest)) {
      u64 spte = leaf_of(gfn >> (9 * (lowest - 1)), density, seed);
      table[at] = spte != 0 && lowest > 1 ? spte | SPTE_HUGE : spte;
    }
  }
}

// What a walk for gfn ends at: bit 0 present, 1 accessed, 2 dirty.
static inline u32 look(u64 gfn) {
  u64 *table = root;
  for (int level = (int)root_level;; level--) {
    u64 spte = table[index_of(gfn, level)];
    if (!(spte & SPTE_PRESENT)) return 0;
    if (is_leaf(spte, level)) return 1 | ((spte >> 8) & 1) << 1 | ((spte >> 9) & 1) << 2;
    table = table_of(spte);
  }
}

// --- Commands ------------------------------------------------------------------------------------------------------

static u32 *gfns;
static u32 gfn_count;
static volatile u64 sink;

#define WALK_ITER 0
#define WALK_NESTED 1

static inline struct counts walk(u32 kind, int age, u64 start, u64 end) {
  if (kind == WALK_ITER) return age ? iter_age(start, end) : iter_zap(start, end);
  struct counts counts = {0, 0, 0};
  nested(root, (int)root_level, start, end, age, &counts);
  return counts;
}

// Sums what the seeded gfns show, each weighed by its place: equal sums mean equal sptes.
static u64 look_all(void) {
  u64 sum = 0;
  for (u32 at = 0; at < gfn_count; at++) sum += (u64)look(gfns[at]) * (at + 1);
  return sum;
}

int main(void) {
  char line[256];
  setvbuf(stdout, NULL, _IONBF, 0);
  gfns = malloc(sizeof(u32) * (1u << 22));
  while (fgets(line, sizeof line, stdin) != NULL) {
    u64 a = 0, b = 0, c = 0;
    char name[32];
    if (sscanf(line, "%31s %" SCNu64 " %" SCNu64 " %" SCNu64, name, &a, &b, &c) < 1) continue;
    if (strcmp(name, "build") == 0) {
      build(a, (int)b);
      printf("ok\n");
    } else if (strcmp(name, "fill") == 0) {
      fill((u32)a, (u32)b);
      printf("ok %" PRIu64 "\n", arena_used);
    } else if (strcmp(name, "gfns") == 0) {
      // `a` u32 gfns follow in binary.
      if (a > (1u << 22) || fread(gfns, 4, a, stdin) != a) return 1;
      gfn_count = (u32)a;
      printf("ok\n");
    } else if (strcmp(name, "whole") == 0) {
      // whole KIND AGE: one walk of the guest, then the seeded sptes are read, all timed.
      u64 start = now();
      struct counts counts = walk((u32)a, (int)b, 0, pages);
      u64 looked = look_all();
      u64 time = now() - start;
      sink += looked;
      printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", time, counts.leafs, counts.accessed,
             counts.dirty, looked);
    } else if (strcmp(name, "ranges") == 0) {
      // ranges KIND AGE NPAGES: one walk of NPAGES from each seeded gfn, its first spte read after it, all timed.
      struct counts total = {0, 0, 0};
      u64 looked = 0;
      u64 start = now();
      for (u32 at = 0; at < gfn_count; at++) {
        struct counts counts = walk((u32)a, (int)b, gfns[at], gfns[at] + c);
        total.leafs += counts.leafs;
        total.accessed += counts.accessed;
        total.dirty += counts.dirty;
        looked += look(gfns[at] + at % c);
      }
      u64 time = now() - start;
      sink += looked;
      printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", time, total.leafs, total.accessed,
             total.dirty, looked);
    } else if (strcmp(name, "look") == 0) {
      printf("%" PRIu64 "\n", look_all());
    } else if (strcmp(name, "bandwidth") == 0) {
      // Read-modify-write of `a` bytes, five times after one to warm up: a time each.
      u64 words = a / 8;
      u64 *memory = mmap(NULL, a, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) return 1;
      madvise(memory, a, MADV_HUGEPAGE);
      memset(memory, 1, a);
      for (int round = 0; round < 6; round++) {
        u64 start = now();
        for (u64 at = 0; at < words; at++) memory[at] += 1;
        u64 time = now() - start;
        sink += memory[words / 2];
        if (round > 0) printf(round > 1 ? " %" PRIu64 : "%" PRIu64, time);
      }
      munmap(memory, a);
      printf("\n");
    } else if (strcmp(name, "quit") == 0) {
      break;
    } else {
      printf("error %s\n", name);
    }
  }
  return 0;
}
