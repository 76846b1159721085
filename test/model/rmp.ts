// The RMP as plainly as it can be: one object a page, one page at a time. Around it as much of a VM as its rules need:
// folios, attributes, one slot, and which gfns are mapped at which level.
//
// Written from the specification, sections 8 and 5.5; shares no code with assembly/.

const BLOCK = 512;

export interface Entry {
  gfn: number;
  isHuge: boolean;
  validated: boolean;
}

/** The counters that the model keeps, under the engine's names. */
const COUNTERS = [
  'rmp_updates_private_4k',
  'rmp_updates_private_2m',
  'rmp_updates_shared_4k',
  'rmp_updates_shared_2m',
  'PSMASH',
  'cache_flushes',
  'rmp_faults_ignored',
  'rmp_faults_spurious',
  'rmp_faults_psmash',
  'pages_validated',
  'exits_hypercall',
  'gmem_pages_allocated',
  'gmem_pages_freed',
] as const;

export class PlainRmp {
  readonly npages: number;
  readonly hasFolios: boolean;
  /** Whether set attributes zaps: not under the RFC. */
  readonly zapsForAttributes: boolean;
  readonly checksAll: boolean;
  readonly entries: (Entry | null)[];
  readonly resident: boolean[];
  readonly inFolio: boolean[];
  readonly isPrivate = new Set<number>();
  /** The level of the private leaf that maps a gfn. */
  readonly leafs = new Map<number, 1 | 2>();
  readonly counters: Record<(typeof COUNTERS)[number], number>;
  slot: { base: number; pgoff: number; npages: number };

  constructor(npages: number, hasFolios: boolean, zapsForAttributes: boolean, checksAll: boolean) {
    this.npages = npages;
    this.hasFolios = hasFolios;
    this.zapsForAttributes = zapsForAttributes;
    this.checksAll = checksAll;
    this.entries = Array.from({ length: npages }, () => null);
    this.resident = Array.from({ length: npages }, () => false);
    this.inFolio = Array.from({ length: npages }, () => false);
    this.slot = { base: 0, pgoff: 0, npages: 0 };
    this.counters = Object.fromEntries(COUNTERS.map((name) => [name, 0])) as typeof this.counters;
  }

  private block(at: number): number[] {
    const first = at - (at % BLOCK);
    return Array.from({ length: BLOCK }, (_, k) => first + k);
  }
  private pageOf(gfn: number): number | null {
    const at = gfn - this.slot.base;
    return at >= 0 && at < this.slot.npages ? at + this.slot.pgoff : null;
  }
  private zap(start: number, end: number): void {
    for (let gfn = start; gfn < end; gfn++) {
      const level = this.leafs.get(gfn);
      if (level === 2) for (const one of this.block(gfn)) this.leafs.delete(one);
      else this.leafs.delete(gfn);
    }
  }

  // --- The file ---

  private allocatePage(page: number): void {
    if (this.resident[page]) return;
    const block = this.block(page);
    const isWhole = this.hasFolios && block.every((one) => one < this.npages && !this.resident[one]);
    for (const one of isWhole ? block : [page]) {
      this.resident[one] = true;
      this.inFolio[one] = isWhole;
      this.counters.gmem_pages_allocated++;
    }
  }
  allocate(page: number, count: number): void {
    for (let at = page; at < page + count; at++) this.allocatePage(at);
  }
  punch(page: number, count: number): void {
    const end = Math.min(page + count, this.npages);
    // What maps the hole goes first.
    this.zap(
      this.slot.base + Math.max(page - this.slot.pgoff, 0),
      this.slot.base + Math.min(end - this.slot.pgoff, this.slot.npages),
    );
    for (let at = page; at < end; at++) {
      if (!this.resident[at] || (at % BLOCK === 0 && at + BLOCK <= end)) continue;
      // A folio that goes in part is one no more.
      if (this.inFolio[at] && this.block(at).some((one) => one < page || one >= end)) {
        for (const one of this.block(at)) this.inFolio[one] = false;
      }
    }
    let at = page;
    while (at < end) {
      const entry = this.entries[at];
      const isHuge = entry?.isHuge === true && at % BLOCK === 0 && at + BLOCK <= end;
      if (entry?.isHuge && !isHuge) this.psmash(at);
      const pages = isHuge ? this.block(at) : [at];
      if (entry !== null) {
        this.counters[isHuge ? 'rmp_updates_shared_2m' : 'rmp_updates_shared_4k']++;
        this.counters.cache_flushes++;
      }
      for (const one of pages) {
        this.entries[one] = null;
        if (this.resident[one]) this.counters.gmem_pages_freed++;
        this.resident[one] = false;
        this.inFolio[one] = false;
      }
      at += pages.length;
    }
  }
  bind(base: number, pgoff: number, npages: number): void {
    this.leafs.clear();
    this.slot = { base, pgoff, npages };
  }

  // --- The RMP ---

  private psmash(page: number): void {
    for (const one of this.block(page)) (this.entries[one] as Entry).isHuge = false;
    this.counters.PSMASH++;
  }
  private prepare(page: number): void {
    if (this.entries[page] !== null) return;
    const delta = this.slot.base - this.slot.pgoff;
    const block = this.block(page);
    const isHuge = this.inFolio[page] && delta % BLOCK === 0 && block.every((one) => this.entries[one] === null);
    for (const one of isHuge ? block : [page]) this.entries[one] = { gfn: one + delta, isHuge, validated: false };
    this.counters[isHuge ? 'rmp_updates_private_2m' : 'rmp_updates_private_4k']++;
  }

  // --- Guest and KVM ---

  convert(start: number, end: number, toPrivate: boolean): void {
    const all = Array.from({ length: end - start }, (_, k) => start + k);
    if (all.every((gfn) => this.isPrivate.has(gfn) === toPrivate)) return;
    if (this.zapsForAttributes) this.zap(start, end);
    for (const gfn of all) {
      if (toPrivate) this.isPrivate.add(gfn);
      else this.isPrivate.delete(gfn);
    }
  }

  /** A private fault: false if it exits. */
  private fault(gfn: number): boolean {
    const page = this.pageOf(gfn);
    if (!this.isPrivate.has(gfn) || page === null) return false;
    this.allocatePage(page);
    this.prepare(page);
    const first = gfn - (gfn % BLOCK);
    const { base, npages, pgoff } = this.slot;
    const isHuge =
      this.inFolio[page] &&
      (base - pgoff) % BLOCK === 0 &&
      this.entries[page]?.isHuge === true &&
      first >= base &&
      first + BLOCK <= base + npages &&
      this.block(gfn).every((one) => this.isPrivate.has(one));
    const level = this.leafs.get(gfn);
    // What is mapped stays; a leaf that would be 4K now is split.
    if (level === 1 || (level === 2 && isHuge)) return true;
    if (level === 2) for (const one of this.block(gfn)) this.leafs.set(one, 1);
    else for (const one of isHuge ? this.block(gfn) : [gfn]) this.leafs.set(one, isHuge ? 2 : 1);
    return true;
  }

  rmpFault(gfn: number): string {
    const ignored = (why: string): string => {
      this.counters.rmp_faults_ignored++;
      return why;
    };
    if (!this.isPrivate.has(gfn)) return ignored('not-private');
    const page = this.pageOf(gfn);
    if (page === null) return ignored('no-slot');
    this.allocatePage(page);
    this.prepare(page);
    if (this.entries[page]?.isHuge !== true) {
      this.counters.rmp_faults_spurious++;
      return 'spurious';
    }
    this.psmash(page);
    this.zap(gfn, gfn + BLOCK);
    this.counters.rmp_faults_psmash++;
    return 'psmash';
  }

  /** One private access or, with `isPvalidate`, the walk of PVALIDATE 4K. */
  private reach(gfn: number, isPvalidate: boolean): string {
    for (let attempt = 0; attempt < 16; attempt++) {
      const level = this.leafs.get(gfn);
      if (level === undefined) {
        if (!this.fault(gfn)) return 'memory_fault';
        continue;
      }
      const entry = this.entries[this.pageOf(gfn) as number] as Entry;
      const checksGpa = isPvalidate || this.checksAll;
      const wantsHuge = isPvalidate ? false : level === 2;
      if (entry.isHuge === wantsHuge && (!checksGpa || entry.gfn === gfn)) {
        return this.checksAll && !isPvalidate && !entry.validated ? 'vc' : 'done';
      }
      // The RMP fault comes after a fault like any other.
      if (!this.fault(gfn)) return 'memory_fault';
      this.rmpFault(gfn);
    }
    return 'retry';
  }

  access(gfn: number, count: number): string {
    for (let at = gfn; at < gfn + count; at++) {
      const outcome = this.reach(at, false);
      if (outcome !== 'done') return `${outcome} ${at}`;
    }
    return `done ${gfn + count}`;
  }

  pvalidate(gfn: number, count: number, isHuge: boolean, validate: boolean): string {
    for (let at = gfn; at < gfn + count; at += isHuge ? BLOCK : 1) {
      const outcome = isHuge ? this.reachHuge(at) : this.reach(at, true);
      if (outcome !== 'done') return `${outcome} ${at}`;
      const page = this.pageOf(at) as number;
      for (const one of isHuge ? this.block(page) : [page]) {
        const entry = this.entries[one] as Entry;
        if (validate && !entry.validated) this.counters.pages_validated++;
        entry.validated = validate;
      }
    }
    return `done ${gfn + count}`;
  }
  private reachHuge(gfn: number): string {
    for (let attempt = 0; attempt < 16; attempt++) {
      const level = this.leafs.get(gfn);
      if (level === undefined) {
        if (!this.fault(gfn)) return 'memory_fault';
        continue;
      }
      const entry = this.entries[this.pageOf(gfn) as number] as Entry;
      if (entry.gfn === gfn) return entry.isHuge && level === 2 ? 'done' : 'size-mismatch';
      // The RMP fault comes after a fault like any other.
      if (!this.fault(gfn)) return 'memory_fault';
      this.rmpFault(gfn);
    }
    return 'retry';
  }

  /** The GHCB's buffer, each exit answered by converting: the exits, then the response. */
  pageStateChange(entries: { gfn: number; isHuge: boolean; isPrivate: boolean; curPage: number }[]): string[] {
    const done: string[] = [];
    for (let at = 0; at < entries.length; ) {
      const { gfn, isHuge, isPrivate, curPage } = entries[at];
      const whole = isHuge ? BLOCK : 1;
      if (curPage > whole || gfn % whole !== 0) return [...done, 'INVALID_ENTRY'];
      let end = gfn + whole;
      at++;
      if (curPage === whole) continue;
      // A range is what the entries behind continue, unless its first is partly done.
      for (; curPage === 0 && at < entries.length; at++) {
        const next = entries[at];
        if (next.gfn !== end || next.isHuge !== isHuge || next.isPrivate !== isPrivate || next.curPage !== 0) break;
        end += whole;
      }
      done.push(`${gfn + curPage}..${end} ${isPrivate ? 'private' : 'shared'}`);
      this.counters.exits_hypercall++;
      this.convert(gfn + curPage, end, isPrivate);
    }
    return [...done, 'ok'];
  }
}
