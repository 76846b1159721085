// Page tables as the hardware has them: arrays of 512 entries, one object per entry, walked one entry at a time.
//
// This is the slow and plain half of the reference model. It shares no code with assembly/: where the engine computes what
// a walk would have visited, this one walks.
// Mirrors: arch/x86/kvm/mmu/tdp_iter.c. Left out: RCU (one thread).

export type RootKind = 'direct' | 'mirror';

/** A present leaf. `pfn` is the identity of the backing page, never compared with the engine's. */
export interface Leaf {
  readonly kind: 'leaf';
  readonly pfn: number;
  readonly writable: boolean;
  readonly executable: boolean;
  readonly accessed: boolean;
  readonly dirty: boolean;
  readonly hostWritable: boolean;
  readonly mmuWritable: boolean;
  readonly private: boolean;
  readonly pending: boolean;
}
export interface TableEntry {
  readonly kind: 'table';
  readonly table: Table;
}
export interface MmioEntry {
  readonly kind: 'mmio';
  readonly generation: number;
}
export type Entry = { readonly kind: 'empty' } | { readonly kind: 'frozen' } | MmioEntry | TableEntry | Leaf;

export const EMPTY: Entry = { kind: 'empty' };
export const FROZEN: Entry = { kind: 'frozen' };

export const isPresent = (entry: Entry): entry is Leaf | TableEntry => entry.kind === 'leaf' || entry.kind === 'table';

/** True if writing `b` over `a` would write the same 64 bits. */
export function sameEntry(a: Entry, b: Entry): boolean {
  if (a.kind === 'leaf' && b.kind === 'leaf') {
    return (
      a.pfn === b.pfn &&
      a.writable === b.writable &&
      a.executable === b.executable &&
      a.accessed === b.accessed &&
      a.dirty === b.dirty &&
      a.hostWritable === b.hostWritable &&
      a.mmuWritable === b.mmuWritable
    );
  }
  if (a.kind === 'mmio' && b.kind === 'mmio') return a.generation === b.generation;
  if (a.kind === 'table' && b.kind === 'table') return a.table === b.table;
  return a.kind === b.kind;
}

export const pagesOf = (level: number): number => 512 ** (level - 1);
export const roundDown = (gfn: number, level: number): number => Math.floor(gfn / pagesOf(level)) * pagesOf(level);

/** `gfn` is the first (canonical) gfn under the table; `nxDisallowed` marks a table made because of the NX workaround. */
export class Table {
  readonly entries: Entry[] = new Array<Entry>(512).fill(EMPTY);
  nxDisallowed = false;
  /** Counted in nx_lpage_splits. */
  nxTracked = false;
  readonly level: number;
  readonly gfn: number;

  constructor(level: number, gfn: number) {
    this.level = level;
    this.gfn = gfn;
  }
}

export class Root {
  readonly table: Table;
  valid = true;
  scheduled = false;
  readonly asId: number;
  readonly kind: RootKind;
  readonly level: number;
  /** The shared bit as a gfn, for the direct root of a TD; else 0. Only used to compute an index. */
  readonly bits: number;

  constructor(asId: number, kind: RootKind, level: number, bits: number) {
    this.asId = asId;
    this.kind = kind;
    this.level = level;
    this.bits = bits;
    this.table = new Table(level, 0);
  }

  index(gfn: number, level: number): number {
    return Math.floor((gfn + this.bits) / pagesOf(level)) % 512;
  }
}

/** One walk. The caller reads `entry`, `gfn` and `level`, and moves on with next(); `visit` is called for each entry met. */
export class TdpIter {
  gfn = 0;
  level = 0;
  valid = true;
  yielded = false;
  yieldedGfn = 0;
  nextLastLevelGfn: number;
  private readonly path: Table[] = [];

  readonly root: Root;
  readonly minLevel: number;
  readonly endGfn: number;
  private readonly visit: (level: number) => void;

  constructor(root: Root, minLevel: number, startGfn: number, endGfn: number, visit: (level: number) => void) {
    this.root = root;
    this.minLevel = minLevel;
    this.endGfn = endGfn;
    this.visit = visit;
    this.nextLastLevelGfn = startGfn;
    this.path[root.level] = root.table;
    this.restart();
    this.settle();
  }

  get table(): Table {
    return this.path[this.level] as Table;
  }
  get index(): number {
    return this.root.index(this.gfn, this.level);
  }
  get entry(): Entry {
    return this.table.entries[this.index] as Entry;
  }

  next(): void {
    if (this.yielded) this.restart();
    else if (!this.stepDown()) {
      for (;;) {
        if (this.stepSide()) break;
        if (!this.stepUp()) {
          this.valid = false;
          break;
        }
      }
    }
    this.settle();
  }

  private settle(): void {
    if (this.valid && this.gfn >= this.endGfn) this.valid = false;
    if (this.valid) this.visit(this.level);
  }
  private restart(): void {
    this.yielded = false;
    this.yieldedGfn = this.nextLastLevelGfn;
    this.level = this.root.level;
    this.gfn = roundDown(this.nextLastLevelGfn, this.level);
  }
  private stepDown(): boolean {
    const entry = this.entry;
    if (this.level === this.minLevel || entry.kind !== 'table') return false;
    this.level--;
    this.path[this.level] = entry.table;
    this.gfn = roundDown(this.nextLastLevelGfn, this.level);
    return true;
  }
  private stepSide(): boolean {
    if (this.index === 511) return false;
    this.gfn += pagesOf(this.level);
    this.nextLastLevelGfn = this.gfn;
    return true;
  }
  private stepUp(): boolean {
    if (this.level === this.root.level) return false;
    this.level++;
    this.gfn = roundDown(this.gfn, this.level);
    return true;
  }
}
