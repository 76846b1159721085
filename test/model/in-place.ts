// In-place conversion as plainly as it can be: files as arrays of pages, leaves as maps of gfns, one page at a time. Around it
// as much of a VM as its rules need: slots over files, faults, notifier events, one sequence count.
//
// A gfn's attribute is not stored: it is looked up in the file that the gfn's slot binds. Written from the specification,
// sections 2.3, 2.4, 3, 4, 5.5, 7.3 to 7.6, 8.3, 8.4 and 11.2; shares no code with assembly/. Only pages of 4K; no MMIO SPTEs.

const PAGE = 4096n;
const U64 = 1n << 64n;
const SIGNED_END = 1n << 63n;
const MMAP = 1;
const INIT_SHARED = 2;
const PRIVATE = 8;
const SHARED_MAPPINGS = 1;
const PRIVATE_MAPPINGS = 2;

export type PlainType = 'sw-protected' | 'snp' | 'tdx';

interface Page {
  isPrivate: boolean;
  present: boolean;
  /** The guest has content here that it put there while the page was private. */
  written: boolean;
  poisoned: boolean;
  pinned: boolean;
  hostMapped: boolean;
  /** The gfn that the page is assigned to in the RMP. */
  rmpGfn: number | null;
}
const newPage = (isPrivate: boolean): Page => ({
  isPrivate,
  present: false,
  written: false,
  poisoned: false,
  pinned: false,
  hostMapped: false,
  rmpGfn: null,
});

export interface PlainFile {
  flags: number;
  isOpen: boolean;
  pages: Page[];
}
export interface PlainSlot {
  base: number;
  npages: number;
  pgoff: number;
  /** null once the file is closed. */
  file: PlainFile | null;
}
/** One unmap of a part of a slot. */
export interface PlainUnmap {
  slot: number;
  start: number;
  end: number;
  filter: number;
}
export interface PlainExit {
  reason: string;
  gfn: number;
  flags?: number;
  errno?: string;
}

/** The counters that the model keeps, under the engine's names. */
const COUNTERS = [
  ...['leafs_zapped_direct_4k', 'leafs_zapped_mirror_4k', 'gfns_zapped', 'leafs_aged', 'invalidations'],
  ...['remote_tlb_flush_requests', 'attribute_xarray_ops', 'private_pages_lost', 'private_pages_to_accept'],
  ...['gmem_pages_allocated', 'gmem_pages_freed', 'gmem_host_pages_unmapped', 'pages_accepted', 'pages_cleared'],
  ...['TDH.MEM.PAGE.AUG', 'TDH.MEM.RANGE.BLOCK', 'TDH.MEM.TRACK', 'TDH.MEM.PAGE.REMOVE', 'TDH.PHYMEM.PAGE.WBINVD'],
  ...['rmp_updates_private_4k', 'rmp_updates_shared_4k', 'cache_flushes'],
] as const;

/** A fault between its two phases: what it decided, or the sequence count that it took. */
export interface PlainFault {
  gfn: number;
  isPrivate: boolean;
  decided: string | null;
  seq: number;
}

export class PlainInPlace {
  readonly type: PlainType;
  readonly byTarget: boolean;
  readonly files: PlainFile[] = [];
  readonly slots = new Map<number, PlainSlot>();
  /** The leaves of the tree that hardware walks; a TD has only its shared ones here. */
  readonly direct = new Map<number, { accessed: boolean; isPrivate: boolean }>();
  /** A TD's private leaves. */
  readonly mirror = new Map<number, { accepted: boolean }>();
  readonly counters: Record<string, number> = Object.fromEntries(COUNTERS.map((name) => [name, 0]));
  seq = 0;
  faultsBegun = 0;
  /** gfns whose private content went although the request did not mean it, in order. */
  readonly losses: number[] = [];
  /** What the last command unmapped, and the hull that it published. */
  unmaps: PlainUnmap[] = [];
  zapped: { direct: number[]; mirror: number[] } = { direct: [], mirror: [] };
  hull: [number, number] | null = null;
  /** An invalidation is under way. */
  private inProgress = false;

  constructor(type: PlainType, byTarget: boolean) {
    this.type = type;
    this.byTarget = byTarget;
  }

  /** Forgets what the last command did. */
  next(): void {
    this.unmaps = [];
    this.zapped = { direct: [], mirror: [] };
    this.hull = null;
  }
  private add(name: (typeof COUNTERS)[number], by = 1): void {
    this.counters[name] += by;
  }

  // --- Files and slots -------------------------------------------------------------------------------------------------

  create(size: bigint, flags: number): string {
    if ((flags & ~(MMAP | INIT_SHARED)) !== 0) return 'EINVAL';
    if (size <= 0n || size % PAGE !== 0n) return 'EINVAL';
    const isPrivate = (flags & INIT_SHARED) === 0;
    const pages = Array.from({ length: Number(size / PAGE) }, () => newPage(isPrivate));
    this.files.push({ flags, isOpen: true, pages });
    return 'ok';
  }

  bind(id: number, base: number, npages: number, file: PlainFile, pgoff: number): string {
    if (this.slots.has(id)) return 'EINVAL';
    for (const slot of this.slots.values()) {
      if (slot.base < base + npages && slot.base + slot.npages > base) return 'EEXIST';
    }
    if (pgoff + npages > file.pages.length) return 'EINVAL';
    for (const slot of this.slots.values()) {
      if (slot.file === file && slot.pgoff < pgoff + npages && slot.pgoff + slot.npages > pgoff) return 'EINVAL';
    }
    if (this.faultsBegun > 0) return 'EBUSY';
    this.slots.set(id, { base, npages, pgoff, file });
    return 'ok';
  }

  delete(id: number): string {
    const slot = this.slots.get(id);
    if (!slot) return 'EINVAL';
    if (this.faultsBegun > 0) return 'EBUSY';
    const unmap = {
      slot: id,
      start: slot.base,
      end: slot.base + slot.npages,
      filter: SHARED_MAPPINGS | PRIVATE_MAPPINGS,
    };
    if (this.unmap(unmap, true)) this.add('remote_tlb_flush_requests');
    this.slots.delete(id);
    return 'ok';
  }

  slotOf(gfn: number): PlainSlot | undefined {
    for (const slot of this.slots.values()) if (gfn >= slot.base && gfn < slot.base + slot.npages) return slot;
    return undefined;
  }
  pageOf(gfn: number): Page | undefined {
    const slot = this.slotOf(gfn);
    return slot?.file?.pages[gfn - slot.base + slot.pgoff];
  }
  isPrivate(gfn: number): boolean {
    return this.pageOf(gfn)?.isPrivate ?? false;
  }
  /** Whether an aligned 2M inside a slot has both kinds of pages. */
  isMixed(gfn: number): boolean {
    const first = this.isPrivate(gfn);
    for (let at = gfn; at < gfn + 512; at++) if (this.isPrivate(at) !== first) return true;
    return false;
  }

  // --- Invalidation ----------------------------------------------------------------------------------------------------

  /** Zaps the leaves of one range in the trees that its filter means. Returns whether there were any. */
  private unmap(range: PlainUnmap, isAskedFor: boolean): boolean {
    this.unmaps.push(range);
    const isTd = this.type === 'tdx';
    const before = this.counters.gfns_zapped;
    for (let gfn = range.start; gfn < range.end; gfn++) {
      if ((!isTd || (range.filter & SHARED_MAPPINGS) !== 0) && this.direct.delete(gfn)) {
        this.add('leafs_zapped_direct_4k');
        this.add('gfns_zapped');
        this.zapped.direct.push(gfn);
      }
      const leaf = this.mirror.get(gfn);
      if ((range.filter & PRIVATE_MAPPINGS) === 0 || !leaf) continue;
      this.mirror.delete(gfn);
      this.zapped.mirror.push(gfn);
      this.add('leafs_zapped_mirror_4k');
      this.add('gfns_zapped');
      this.add('TDH.MEM.RANGE.BLOCK');
      this.add('TDH.MEM.TRACK');
      this.add('TDH.MEM.PAGE.REMOVE');
      this.add('TDH.PHYMEM.PAGE.WBINVD');
      this.add('pages_cleared');
      if (!leaf.accepted) continue;
      this.add('private_pages_lost');
      this.add('private_pages_to_accept');
      const page = this.pageOf(gfn);
      if (page) page.written = false;
      if (!isAskedFor) this.losses.push(gfn);
    }
    return this.counters.gfns_zapped !== before;
  }

  /** The parts of slots that show pages [start, end) of a file, in the order of the pages. */
  private bindingsOf(file: PlainFile, start: number, end: number): { slot: number; start: number; end: number }[] {
    return [...this.slots]
      .filter(([, { file: bound, pgoff, npages }]) => bound === file && pgoff < end && pgoff + npages > start)
      .sort(([, a], [, b]) => a.pgoff - b.pgoff)
      .map(([slot, { base, pgoff, npages }]) => ({
        slot,
        start: base + Math.max(start, pgoff) - pgoff,
        end: base + Math.min(end, pgoff + npages) - pgoff,
      }));
  }

  /** One invalidation around `between`, if any slot shows the pages. */
  private invalidate(
    file: PlainFile,
    start: number,
    end: number,
    filter: number,
    isAskedFor: boolean,
    between: () => void,
  ): void {
    const ranges = this.bindingsOf(file, start, end);
    this.begin(ranges);
    let flush = false;
    for (const range of ranges) if (this.unmap({ ...range, filter }, isAskedFor)) flush = true;
    if (flush) this.add('remote_tlb_flush_requests');
    between();
    this.end(ranges);
  }
  private begin(ranges: readonly { start: number; end: number }[]): void {
    if (ranges.length === 0) return;
    this.add('invalidations');
    this.inProgress = true;
    this.hull = [Math.min(...ranges.map(({ start }) => start)), Math.max(...ranges.map(({ end }) => end))];
  }
  private end(ranges: readonly unknown[]): void {
    if (ranges.length === 0) return;
    this.inProgress = false;
    this.seq++;
  }

  /** What the pages hold: private mappings, shared ones, or both. */
  private contentFilter(file: PlainFile, start: number, end: number): number {
    const pages = file.pages.slice(start, end);
    const hasPrivate = pages.some(({ isPrivate }) => isPrivate);
    const hasShared = pages.some(({ isPrivate }) => !isPrivate);
    return (hasShared ? SHARED_MAPPINGS : 0) | (hasPrivate ? PRIVATE_MAPPINGS : 0);
  }

  // --- The file's calls ------------------------------------------------------------------------------------------------

  /** KVM_SET_MEMORY_ATTRIBUTES2. `at` is called at the points where the operation can be stopped. */
  convert(
    file: PlainFile,
    offset: bigint,
    size: bigint,
    attributes: number,
    flags: number,
    at: (point: string) => void,
  ): string {
    if (!file.isOpen) return 'EBADF';
    if (flags !== 0 || (attributes & ~PRIVATE) !== 0) return 'EINVAL';
    if (size === 0n || offset + size >= U64 || offset % PAGE !== 0n || size % PAGE !== 0n) return 'EINVAL';
    if (offset + size > BigInt(file.pages.length) * PAGE) return 'EINVAL';
    const start = Number(offset / PAGE);
    const end = start + Number(size / PAGE);
    const toPrivate = attributes === PRIVATE;
    const pages = file.pages.slice(start, end);
    if (pages.every(({ isPrivate }) => isPrivate === toPrivate)) return 'ok';
    if (toPrivate) {
      for (const page of pages) {
        if (page.hostMapped) this.add('gmem_host_pages_unmapped');
        page.hostMapped = false;
      }
      const held = pages.findIndex(({ pinned }) => pinned);
      if (held >= 0) return `EAGAIN at ${start + held}`;
    }
    const target = toPrivate ? SHARED_MAPPINGS : PRIVATE_MAPPINGS;
    const filter = this.byTarget ? target : this.contentFilter(file, start, end);
    this.invalidate(file, start, end, filter, !toPrivate, () => {
      at('attributes-zapped');
      for (const page of pages) {
        if (!toPrivate) {
          this.unassign(page);
          // A TD's content went with the leaf, or was never there; the host of an SNP guest can't read it.
          if (this.type === 'snp' && page.written) this.add('private_pages_lost');
          page.written = false;
        }
        page.isPrivate = toPrivate;
      }
      this.add('attribute_xarray_ops');
      at('attributes-stored');
    });
    return 'ok';
  }

  private unassign(page: Page): void {
    if (page.rmpGfn === null) return;
    page.rmpGfn = null;
    this.add('rmp_updates_shared_4k');
    this.add('cache_flushes');
  }

  private free(pages: readonly Page[]): void {
    for (const page of pages) {
      if (!page.present) continue;
      this.unassign(page);
      if (page.written) this.add('private_pages_lost');
      this.add('gmem_pages_freed');
      Object.assign(page, newPage(page.isPrivate));
    }
  }

  punch(file: PlainFile, offset: bigint, length: bigint, at: (point: string) => void): string {
    const error = this.fallocateError(file, offset, length);
    if (error) return error;
    const start = Number(offset / PAGE);
    const end = start + Number(length / PAGE);
    this.invalidate(file, start, end, this.contentFilter(file, start, end), true, () => {
      at('gmem-zapped');
      this.free(file.pages.slice(start, end));
    });
    return 'ok';
  }
  allocate(file: PlainFile, offset: bigint, length: bigint): string {
    const error = this.fallocateError(file, offset, length);
    if (error) return error;
    if (offset + length > BigInt(file.pages.length) * PAGE) return 'EINVAL';
    for (const page of file.pages.slice(Number(offset / PAGE), Number((offset + length) / PAGE))) this.bring(page);
    return 'ok';
  }
  private fallocateError(file: PlainFile, offset: bigint, length: bigint): string | null {
    if (!file.isOpen) return 'EBADF';
    if (offset >= SIGNED_END || length >= SIGNED_END || length === 0n) return 'EINVAL';
    if (offset + length >= SIGNED_END) return 'EFBIG';
    return offset % PAGE !== 0n || length % PAGE !== 0n ? 'EINVAL' : null;
  }
  private bring(page: Page): void {
    if (page.present) return;
    page.present = true;
    this.add('gmem_pages_allocated');
  }

  memoryError(file: PlainFile, at: number): string {
    if (!file.isOpen) return 'EBADF';
    if (at >= file.pages.length) return 'EINVAL';
    this.invalidate(file, at, at + 1, this.contentFilter(file, at, at + 1), true, () => {
      this.bring(file.pages[at]);
      file.pages[at].poisoned = true;
      file.pages[at].hostMapped = false;
    });
    return 'ok';
  }

  close(file: PlainFile): string {
    if (!file.isOpen) return 'EBADF';
    this.invalidate(file, 0, file.pages.length, this.contentFilter(file, 0, file.pages.length), true, () => {
      for (const slot of this.slots.values()) if (slot.file === file) slot.file = null;
    });
    this.free(file.pages);
    file.isOpen = false;
    return 'ok';
  }

  /** The VMM touches bytes through its mapping: page by page, until a SIGBUS. */
  hostAccess(file: PlainFile, offset: bigint, length: bigint): string {
    if (!file.isOpen) return 'EBADF';
    if ((file.flags & MMAP) === 0) return 'ENODEV';
    if (length === 0n) return 'ok';
    if (offset + length >= U64) return 'EFAULT';
    const last = (offset + length - 1n) / PAGE;
    for (let at = offset / PAGE; at <= last; at++) {
      const page = file.pages[Number(at)];
      if (page === undefined || page.isPrivate || page.poisoned) return 'EFAULT';
      this.bring(page);
      page.hostMapped = true;
    }
    return 'ok';
  }

  pin(file: PlainFile, at: number, isPinned: boolean): string {
    if (!file.isOpen) return 'EBADF';
    if (at >= file.pages.length) return 'EINVAL';
    const page = file.pages[at];
    if (!page.present) return 'ENOENT';
    page.pinned = isPinned;
    return 'ok';
  }

  // --- The guest -------------------------------------------------------------------------------------------------------

  /** How an access of the guest is made: of a TD by the gpa, of SNP by the C-bit, else as the attribute says. */
  private kindOf(gfn: number, isPrivate: boolean | undefined): boolean {
    if (this.type === 'sw-protected') return this.isPrivate(gfn);
    return isPrivate ?? (this.type === 'tdx' || this.isPrivate(gfn));
  }

  /** A fault up to the page: why there is none, or null. */
  private lookUp(gfn: number, isPrivate: boolean): { reason: string; errno?: string } | null {
    if (isPrivate !== this.isPrivate(gfn)) return { reason: 'memory_fault', errno: 'EFAULT' };
    const slot = this.slotOf(gfn);
    if (!slot) return isPrivate ? { reason: 'memory_fault', errno: 'EFAULT' } : { reason: 'mmio' };
    if (this.inProgress && this.hull && gfn >= this.hull[0] && gfn < this.hull[1]) return { reason: 'retry' };
    const page = this.pageOf(gfn);
    if (!page) return { reason: 'memory_fault', errno: 'EFAULT' };
    if (page.poisoned) return { reason: 'memory_fault', errno: 'EHWPOISON' };
    this.bring(page);
    if (isPrivate && this.type === 'snp' && page.rmpGfn === null) {
      page.rmpGfn = gfn;
      this.add('rmp_updates_private_4k');
    }
    return null;
  }

  private treeOf(isPrivate: boolean): Map<number, unknown> {
    return this.type === 'tdx' && isPrivate ? this.mirror : this.direct;
  }
  private install(gfn: number, isPrivate: boolean, accessed: boolean): void {
    if (this.type === 'tdx' && isPrivate) {
      this.mirror.set(gfn, { accepted: false });
      this.add('TDH.MEM.PAGE.AUG');
    } else {
      this.direct.set(gfn, { accessed, isPrivate });
    }
  }

  /** `count` accesses from `gfn` on, until one exits. */
  access(gfn: number, count: number, isWrite: boolean, isPrivate: boolean | undefined): PlainExit {
    for (let at = gfn; at < gfn + count; at++) {
      const kind = this.kindOf(at, isPrivate);
      if (!this.treeOf(kind).has(at)) {
        const refused = this.lookUp(at, kind);
        if (refused)
          return { ...refused, gfn: at, flags: refused.reason === 'memory_fault' ? (kind ? 8 : 0) : undefined };
        this.install(at, kind, true);
      }
      if (this.treeOf(kind) === this.mirror) {
        if (!this.mirror.get(at)?.accepted) return { reason: 've', gfn: at };
        continue;
      }
      const leaf = this.direct.get(at);
      if (!leaf) throw new Error(`no leaf at ${at}`);
      leaf.accessed = true;
      const page = this.pageOf(at);
      if (isWrite && leaf.isPrivate && page) page.written = true;
    }
    return { reason: 'done', gfn: gfn + count };
  }

  /** KVM_PRE_FAULT_MEMORY: returns how many pages were done, and why not all. */
  preFault(gfn: number, count: number): string {
    for (let at = gfn; at < gfn + count; at++) {
      const kind = this.isPrivate(at);
      if (this.treeOf(kind).has(at)) continue;
      const refused = this.lookUp(at, kind);
      if (refused)
        return at > gfn ? `${gfn + count - at} left` : refused.reason === 'mmio' ? 'ENOENT' : `${refused.errno}`;
      this.install(at, kind, false);
    }
    return '0 left';
  }

  /** ACCEPT of `count` pages: how many it made the guest's, or the errno. */
  accept(gfn: number, count: number): string {
    let accepted = 0;
    for (let at = gfn; at < gfn + count; at++) {
      if (!this.mirror.has(at)) {
        const refused = this.lookUp(at, true);
        if (refused) return `${refused.errno}`;
        this.install(at, true, true);
      }
      const leaf = this.mirror.get(at);
      const page = this.pageOf(at);
      if (!leaf || !page) throw new Error(`no leaf or page at ${at}`);
      if (leaf.accepted) continue;
      leaf.accepted = true;
      page.written = true;
      accepted++;
      this.add('pages_accepted');
    }
    return `${accepted} accepted`;
  }

  beginFault(gfn: number, isPrivate: boolean | undefined): PlainFault {
    this.faultsBegun++;
    const kind = this.kindOf(gfn, isPrivate);
    const { seq } = this;
    const refused = this.lookUp(gfn, kind);
    return { gfn, isPrivate: kind, seq, decided: refused && (refused.reason === 'mmio' ? 'emulate' : refused.reason) };
  }
  finishFault({ gfn, isPrivate, seq, decided }: PlainFault): string {
    this.faultsBegun--;
    if (decided) return decided;
    if (seq !== this.seq) return 'retry';
    if (this.treeOf(isPrivate).has(gfn)) return 'spurious';
    this.install(gfn, isPrivate, true);
    return 'fixed';
  }

  // --- The notifier, and kvm_gfn_range ---------------------------------------------------------------------------------

  notify(id: number, start: number, end: number): string {
    const slot = this.slots.get(id);
    if (!slot) return 'no slot';
    const ranges = [{ slot: id, start, end, filter: SHARED_MAPPINGS }];
    this.begin(ranges);
    if (this.unmap(ranges[0], false)) this.add('remote_tlb_flush_requests');
    this.end(ranges);
    return 'ok';
  }

  /** Clears Accessed where the filter reaches; whether any was set. */
  age(start: number, end: number, filter: number, flush: boolean): boolean {
    if (this.type === 'tdx' && (filter & SHARED_MAPPINGS) === 0) return false;
    let young = 0;
    for (let gfn = start; gfn < end; gfn++) {
      const leaf = this.direct.get(gfn);
      if (!leaf?.accessed) continue;
      leaf.accessed = false;
      young++;
    }
    this.add('leafs_aged', young);
    if (young > 0 && flush) this.add('remote_tlb_flush_requests');
    return young > 0;
  }
  isYoung(start: number, end: number): boolean {
    for (let gfn = start; gfn < end; gfn++) if (this.direct.get(gfn)?.accessed) return true;
    return false;
  }

  /** A range that someone unmaps by hand: private content is asked for if the filter says so. */
  unmapGfnRange(slot: number, start: number, end: number, filter: number): boolean {
    return this.unmap({ slot, start, end, filter }, (filter & PRIVATE_MAPPINGS) !== 0);
  }
}
