// The plain reference model: the simulated kernel, the slow and obvious way. Every page-table operation steps one entry at
// a time over real 512-entry tables, every gfn's attribute is one entry of a Map, every event is one object.
//
// It has the public methods of Vm, GuestMemfd, Vcpu and HostMemory under the same names, so that one command can drive both.
// Mirrors: virt/kvm/kvm_main.c, virt/kvm/guest_memfd.c, arch/x86/kvm/mmu/{mmu,tdp_mmu}.c. Shares no code with assembly/.

import { ModelGuestMemfd } from './guest-memfd.ts';
import { Host, type HostMapping } from './host.ts';
import { ModelHost } from './host-memory.ts';
import {
  type AccessKind,
  big,
  type Fault,
  type FaultResult,
  type FilterForm,
  FREE_OBSOLETE_ROOTS,
  type GfnRange,
  INV_NONE,
  isPageAligned,
  type KernelProfile,
  MAX_SLOT_PAGES,
  MAX_SLOTS,
  ModelError,
  type ModelEvent,
  type ModelOptions,
  meaning,
  PRIVATE,
  PRIVATE_ATTRIBUTE,
  type Range,
  SHARED,
  TLB_FLUSH,
  toGfn,
  type U64,
  U64_MAX,
  USER_END,
  type VmType,
} from './kernel.ts';
import {
  bindingPieces,
  GmemFile,
  GUEST_MEMFD,
  guardRegions,
  initMixed,
  isDisallowed,
  isLogged,
  LOG_DIRTY_PAGES,
  postSetMixed,
  READONLY,
  type Slot,
  slotEnd,
} from './memslot.ts';
import {
  EMPTY,
  type Entry,
  FROZEN,
  isPresent,
  type Leaf,
  pagesOf,
  Root,
  type RootKind,
  roundDown,
  sameEntry,
  Table,
  TdpIter,
} from './page-tables.ts';
import { ModelVcpu } from './vcpu.ts';

export class ModelVm {
  readonly type: VmType;
  readonly kernel: KernelProfile;
  readonly filterForm: FilterForm;
  readonly isTd: boolean;
  readonly hasPrivateMem: boolean;
  readonly addressSpaces: number;
  readonly rootLevel: number;
  readonly maxGfn: number;
  readonly sharedBit: number;
  slotZapAll: boolean;
  nxHugePages: boolean;
  eagerPageSplit: boolean;
  readonly mmioCaching: boolean;
  readonly hugepageGuard: boolean;
  readonly septVeDisable: boolean;

  readonly slots: Slot[] = [];
  readonly generations: number[];
  readonly attributes = new Map<number, number>();
  /** Newest first, as list_add() leaves them. */
  roots: Root[] = [];
  readonly files = new Map<number, GmemFile>();
  readonly vcpus: ModelVcpu[];
  readonly host: ModelHost;
  readonly hostModel: Host;

  seq = 0;
  inProgress = 0;
  invStart = INV_NONE;
  invEnd = INV_NONE;
  dead = false;
  /** The VM fd is closed; the VM itself lives while a guest_memfd file is open. */
  isClosed = false;
  isDestroyed = false;
  manualProtect = 0;
  private yieldGfn: number | null = null;
  nextFd = 100;
  private nextGmemPfn = -1;
  private readonly nxTables: Table[] = [];
  events: ModelEvent[] = [];
  readonly counters = new Map<string, number>();
  /** Guest content of private pages: TD by gfn (it lives in the mapping), else by gmem page. */
  readonly accepted = new Set<number>();

  constructor(options: ModelOptions = {}) {
    this.type = options.type ?? 'default';
    this.kernel = options.kernel ?? 'rfc-v4';
    this.filterForm =
      options.filterForm ??
      (this.kernel === 'rfc-v4' ? 'rfc-v4' : this.kernel === 'linux-6.12' ? 'none' : 'attr-filter');
    this.isTd = this.type === 'tdx';
    this.hasPrivateMem = this.type !== 'default';
    this.addressSpaces = this.hasPrivateMem ? 1 : 2;
    const width = this.isTd ? (options.gpaw ?? 48) : (options.maxphyaddr ?? 52);
    this.rootLevel = width <= 48 ? 4 : 5;
    this.maxGfn = 2 ** ((options.maxphyaddr ?? 52) - 12);
    this.sharedBit = this.isTd ? 2 ** (width - 13) : 0;
    this.slotZapAll = options.quirks?.slotZapAll ?? true;
    this.nxHugePages = options.nxHugePages ?? false;
    this.eagerPageSplit = options.eagerPageSplit ?? true;
    this.mmioCaching = options.mmioCaching ?? true;
    this.hugepageGuard = options.hugepageGuard ?? true;
    this.septVeDisable = options.septVeDisable ?? true;
    this.generations = this.addressSpaces === 2 ? [0, 1] : [0];
    this.vcpus = Array.from({ length: options.vcpus ?? 1 }, (_, index) => new ModelVcpu(this, index));
    const notifier = {
      start: (start: number, end: number) => this.invalidateStart(start, end, true),
      end: (start: number, end: number) => this.invalidateEnd(start, end),
      age: (start: number, end: number) => this.hvaAge(start, end),
    };
    this.hostModel = new Host(notifier, this.kernel === 'linux-6.16');
    this.host = new ModelHost(this);
  }

  // --- counters and events

  count(name: string, n = 1): void {
    this.counters.set(name, (this.counters.get(name) ?? 0) + n);
  }
  emit(name: string, fields: Record<string, unknown> = {}): void {
    this.events.push({ name, ...fields });
  }
  trace(): ModelEvent[] {
    const events = this.events;
    this.events = [];
    return events;
  }
  stats(): Record<string, number> {
    const stats = Object.fromEntries(this.counters);
    stats.pages_4k = 0;
    stats.pages_2m = 0;
    stats.pages_1g = 0;
    stats.tables = 0;
    for (const root of this.roots) this.tally(root.table, stats);
    return stats;
  }
  private tally(table: Table, stats: Record<string, number>): void {
    for (const entry of table.entries) {
      if (entry.kind === 'leaf') {
        const name = table.level === 1 ? 'pages_4k' : table.level === 2 ? 'pages_2m' : 'pages_1g';
        stats[name] = (stats[name] ?? 0) + 1;
      } else if (entry.kind === 'table') {
        stats.tables = (stats.tables ?? 0) + 1;
        this.tally(entry.table, stats);
      }
    }
  }
  private request(nr: number): void {
    this.emit('req', { nr });
    if (nr === FREE_OBSOLETE_ROOTS) this.count('kvm_request_free_obsolete_roots');
    if (nr === TLB_FLUSH) for (const vcpu of this.vcpus) vcpu.flushPending = true;
  }
  flush(): void {
    this.emit('flush');
    this.count('remote_tlb_flush_requests');
    this.request(TLB_FLUSH);
  }
  private flushRange(gfn: number, npages: number): void {
    this.emit('flush_range', { gfn, npages });
    this.flush();
  }

  // --- memslots

  slotsOf(asId: number): Slot[] {
    return this.slots.filter((slot) => slot.asId === asId).sort((a, b) => a.base - b.base);
  }
  slotAt(asId: number, gfn: number): Slot | null {
    return this.slotsOf(asId).find((slot) => slot.base <= gfn && gfn < slotEnd(slot)) ?? null;
  }
  private slotById(slot: number): Slot | undefined {
    return this.slots.find((one) => one.asId === slot >> 16 && one.id === (slot & 0xffff));
  }
  isPrivate(gfn: number): boolean {
    return ((this.attributes.get(gfn) ?? 0) & PRIVATE_ATTRIBUTE) !== 0;
  }
  attributesOf(gfn: number): number {
    return this.attributes.get(gfn) ?? 0;
  }
  isMixed(slot: number, level: 2 | 3, gfn: number): boolean {
    return this.slotById(slot)?.mixed[level].has(roundDown(gfn, level)) ?? false;
  }

  private alive(): void {
    if (this.isDestroyed || this.isClosed) throw new ModelError('EBADF');
    if (this.dead) throw new ModelError('EIO');
  }

  setUserMemoryRegion(a: {
    slot: number;
    flags?: number;
    guestPhysAddr: U64;
    memorySize: U64;
    userspaceAddr: U64;
  }): void {
    this.alive();
    if (((a.flags ?? 0) & ~(LOG_DIRTY_PAGES | READONLY)) !== 0) throw new ModelError('EINVAL');
    this.setMemoryRegion(a);
  }
  setUserMemoryRegion2(a: {
    slot: number;
    flags?: number;
    guestPhysAddr: U64;
    memorySize: U64;
    userspaceAddr: U64;
    guestMemfd?: number;
    guestMemfdOffset?: U64;
  }): void {
    this.alive();
    this.setMemoryRegion(a);
  }

  private setMemoryRegion(a: {
    slot: number;
    flags?: number;
    guestPhysAddr: U64;
    memorySize: U64;
    userspaceAddr: U64;
    guestMemfd?: number;
    guestMemfdOffset?: U64;
  }): void {
    const flags = a.flags ?? 0;
    const gpa = big(a.guestPhysAddr);
    const size = big(a.memorySize);
    const hva = big(a.userspaceAddr);
    const offset = big(a.guestMemfdOffset ?? 0);
    const id = a.slot & 0xffff;
    const asId = a.slot >>> 16;
    if (id >= MAX_SLOTS) throw new ModelError('EINVAL');
    let valid = LOG_DIRTY_PAGES | READONLY;
    if (this.hasPrivateMem) valid |= GUEST_MEMFD;
    if (flags & GUEST_MEMFD) valid &= ~(LOG_DIRTY_PAGES | READONLY);
    if ((flags & ~valid) !== 0) throw new ModelError('EINVAL');
    if (!isPageAligned(size) || !isPageAligned(gpa)) throw new ModelError('EINVAL');
    if (!isPageAligned(hva) || hva + size > USER_END) throw new ModelError('EINVAL');
    if (flags & GUEST_MEMFD && (!isPageAligned(offset) || offset + size > U64_MAX)) throw new ModelError('EINVAL');
    if (asId >= this.addressSpaces) throw new ModelError('EINVAL');
    if (gpa + size > U64_MAX) throw new ModelError('EINVAL');
    if (size >> 12n > BigInt(MAX_SLOT_PAGES)) throw new ModelError('EINVAL');
    const old = this.slotById(a.slot);
    if (size === 0n) {
      if (!old) throw new ModelError('EINVAL');
      this.emit('set_memslot', { change: 1 });
      this.invalidateMemslot(old);
      this.slots.splice(this.slots.indexOf(old), 1);
      this.swapMemslots(asId);
      this.emit('commit_region', { change: 1 });
      this.unbind(old);
      return;
    }
    const base = toGfn(gpa);
    const npages = toGfn(size);
    const fresh: Slot = {
      asId,
      id,
      base,
      npages,
      hva: toGfn(hva),
      flags,
      gmem: null,
      dirty: null,
      mixed: { 2: new Set(), 3: new Set() },
    };
    let change = 0;
    if (old) {
      if (flags & GUEST_MEMFD) throw new ModelError('EINVAL');
      if (fresh.hva !== old.hva || npages !== old.npages) throw new ModelError('EINVAL');
      if ((flags ^ old.flags) & (READONLY | GUEST_MEMFD)) throw new ModelError('EINVAL');
      if (base !== old.base) change = 2;
      else if (flags !== old.flags) change = 3;
      else return;
    }
    if (change !== 3) {
      const hits = this.slotsOf(asId).some((one) => one !== old && one.base < base + npages && base < slotEnd(one));
      if (hits) throw new ModelError('EEXIST');
    }
    if (flags & GUEST_MEMFD) this.bind(fresh, a.guestMemfd ?? -1, offset);
    this.emit('set_memslot', { change });
    if (change === 2 && old) this.invalidateMemslot(old);
    const last = base + npages - 1;
    if (change !== 3 && (last >= this.maxGfn || (this.isTd && Math.floor(last / this.sharedBit) % 2 === 1))) {
      this.unbind(fresh);
      if (change === 2) this.swapMemslots(asId);
      throw new ModelError('EINVAL');
    }
    if (isLogged(fresh)) {
      fresh.dirty = old?.dirty ?? new Set();
      if (!old?.dirty && this.manualProtect & 2) for (let i = 0; i < npages; i++) fresh.dirty.add(i);
    }
    if (change === 3 && old) fresh.mixed = old.mixed;
    else if (this.hasPrivateMem) initMixed(fresh, (gfn) => this.attributesOf(gfn));
    if (old) this.slots.splice(this.slots.indexOf(old), 1);
    this.slots.push(fresh);
    this.swapMemslots(asId);
    this.emit('commit_region', { change });
    if (change === 3 && old && !(flags & READONLY)) this.dirtyLoggingChanged(fresh);
  }

  private swapMemslots(asId: number): void {
    this.emit('swap_memslots', { asId });
    this.generations[asId] = (this.generations[asId] ?? 0) + this.addressSpaces;
    this.emit('mmio_gen', { generation: this.generations[asId] });
  }

  private invalidateMemslot(slot: Slot): void {
    this.swapMemslots(slot.asId);
    this.emit('flush_shadow_memslot', { slot: slot.id, gfn: slot.base, npages: slot.npages });
    if (this.type === 'default' && this.slotZapAll) this.zapAllFast();
    else {
      const all = this.filterForm === 'rfc-v4' || this.filterForm === 'tdx-v18';
      const flush = this.unmap({
        slot,
        start: slot.base,
        end: slotEnd(slot),
        attributes: 0,
        mayBlock: true,
        onlyPrivate: all,
        onlyShared: all,
        attrFilter: this.filterForm === 'attr-filter' ? PRIVATE | SHARED : 0,
      });
      if (flush) this.flush();
    }
    this.emit('reclaimed');
  }

  private dirtyLoggingChanged(slot: Slot): void {
    if (!isLogged(slot)) {
      this.emit('zap_collapsible', { slot: slot.id });
      if (this.kernel === 'linux-6.16') this.recoverHugePages(slot);
      else this.zapCollapsible(slot);
      return;
    }
    if (this.manualProtect & 2) return;
    if (this.eagerPageSplit) this.splitHugePages(slot, slot.base, slotEnd(slot), true);
    this.emit('wrprot_slot', { slot: slot.id, level: 1 });
    for (const root of this.rootsOf(slot.asId, false)) {
      for (const iter of this.walk(root, 1, slot.base, slotEnd(slot), true)) {
        const entry = iter.entry;
        if (entry.kind === 'leaf' && entry.writable) this.writeProtect(root, iter, { writable: false });
      }
    }
    this.flushRange(slot.base, slot.npages);
  }
  private writeProtect(root: Root, iter: TdpIter, change: Partial<Leaf>): void {
    this.count('leafs_write_protected');
    this.setSpte(root, iter, { ...(iter.entry as Leaf), ...change }, false);
  }

  getDirtyLog(a: { slot: number }): { first: number; count: number }[] {
    this.alive();
    const slot = this.loggedSlot(a.slot);
    const dirty = [...(slot.dirty as Set<number>)].sort((x, y) => x - y);
    if (!this.manualProtect) {
      const words = new Map<number, bigint>();
      for (const page of dirty) {
        const word = Math.floor(page / 64);
        words.set(word, (words.get(word) ?? 0n) | (1n << BigInt(page % 64)));
      }
      slot.dirty = new Set();
      for (const [word, mask] of words) this.enableLogMasked(slot, word * 64, mask);
      if (words.size > 0) this.flushRange(slot.base, slot.npages);
    }
    const runs: { first: number; count: number }[] = [];
    for (const page of dirty) {
      const run = runs.at(-1);
      if (run && run.first + run.count === page) run.count++;
      else runs.push({ first: page, count: 1 });
    }
    return runs;
  }
  private loggedSlot(id: number): Slot {
    if (id >>> 16 >= this.addressSpaces || (id & 0xffff) >= MAX_SLOTS) throw new ModelError('EINVAL');
    const slot = this.slotById(id);
    if (!slot?.dirty) throw new ModelError('ENOENT');
    return slot;
  }
  clearDirtyLog(a: { slot: number; firstPage: U64; numPages: number; bitmap: Uint8Array | bigint }): void {
    this.alive();
    if (a.slot >>> 16 >= this.addressSpaces || (a.slot & 0xffff) >= MAX_SLOTS) throw new ModelError('EINVAL');
    if (big(a.firstPage) % 64n !== 0n) throw new ModelError('EINVAL');
    const slot = this.loggedSlot(a.slot);
    const first = Number(a.firstPage);
    const rest = slot.npages - first;
    if (rest < 0 || a.numPages > rest || (a.numPages < rest && a.numPages % 64 !== 0)) throw new ModelError('EINVAL');
    let flush = false;
    for (let word = 0; word * 64 < a.numPages; word++) {
      let mask = 0n;
      for (let bit = 0; bit < 64; bit++) {
        const at = word * 64 + bit;
        const isSet =
          typeof a.bitmap === 'bigint'
            ? (a.bitmap >> BigInt(bit)) & 1n
            : (((a.bitmap[at >> 3] ?? 0) >> (at & 7)) & 1) === 1;
        if (isSet && slot.dirty?.delete(first + at)) mask |= 1n << BigInt(bit);
      }
      if (mask === 0n) continue;
      flush = true;
      this.enableLogMasked(slot, first + word * 64, mask);
    }
    if (flush) this.flushRange(slot.base, slot.npages);
  }

  private enableLogMasked(slot: Slot, offset: number, mask: bigint): void {
    const bits: number[] = [];
    for (let bit = 0; bit < 64; bit++) if ((mask >> BigInt(bit)) & 1n) bits.push(bit);
    const gfn = slot.base + offset;
    if (this.manualProtect & 2) {
      const first = gfn + (bits[0] as number);
      const last = gfn + (bits.at(-1) as number);
      if (this.eagerPageSplit) this.splitHugePages(slot, first, last + 1, false);
      this.writeProtectGfn(slot, first);
      if (Math.ceil(first / 512) !== Math.ceil(last / 512)) this.writeProtectGfn(slot, last);
    }
    this.emit('clear_dirty_mask', { slot: slot.id, gfn, mask });
    for (const root of this.rootsOf(slot.asId, false)) {
      const left = new Set(bits.map((bit) => gfn + bit));
      for (const iter of this.walk(root, 1, gfn + (bits[0] as number), gfn + 64, false)) {
        const entry = iter.entry;
        if (entry.kind !== 'leaf') continue;
        if (left.size === 0) break;
        if (iter.level > 1 || !left.delete(iter.gfn) || !entry.writable) continue;
        this.writeProtect(root, iter, { writable: false });
      }
    }
  }
  private writeProtectGfn(slot: Slot, gfn: number): void {
    this.emit('write_protect_gfn', { gfn, level: 2 });
    for (const root of this.rootsOf(slot.asId, false)) {
      for (const iter of this.walk(root, 2, gfn, gfn + 1, false)) {
        const entry = iter.entry;
        if (entry.kind !== 'leaf') continue;
        if (!entry.writable && !entry.mmuWritable) break;
        this.writeProtect(root, iter, { writable: false, mmuWritable: false });
      }
    }
  }

  enableCap(a: { cap: number; flags?: U64; args?: U64[] }): void {
    this.alive();
    const arg = big(a.args?.[0] ?? 0);
    if (big(a.flags ?? 0) !== 0n) throw new ModelError('EINVAL');
    if (a.cap === 168) {
      if (arg & ~3n || arg === 2n) throw new ModelError('EINVAL');
      this.manualProtect = Number(arg);
    } else if (a.cap === 213) {
      if (arg & ~0xffn) throw new ModelError('EINVAL');
      if (arg & 0x80n) this.slotZapAll = false;
    } else throw new ModelError('EINVAL');
  }

  writeParameter(name: 'nx_huge_pages' | 'eager_page_split', value: boolean): void {
    this.alive();
    if (name === 'eager_page_split') this.eagerPageSplit = value;
    else if (value !== this.nxHugePages) {
      this.nxHugePages = value;
      this.zapAllFast();
    }
  }

  // --- roots, walks and the funnel

  private rootsOf(asId: number, includeInvalid: boolean, kinds: readonly RootKind[] = ['direct', 'mirror']): Root[] {
    return this.roots.filter(
      (root) => root.asId === asId && (includeInvalid || root.valid) && kinds.includes(root.kind),
    );
  }

  /** Steps over the entries; yields the lock at the injected gfn when the caller may. Flushes first if `state.flush`. */
  private *walk(
    root: Root,
    minLevel: number,
    start: number,
    end: number,
    canYield: boolean,
    state: { flush: boolean } = { flush: false },
  ): Generator<TdpIter> {
    const visit = (level: number): void => {
      this.count('entries_visited');
      this.count(`entries_visited_l${level}`);
    };
    for (const iter = new TdpIter(root, minLevel, start, end, visit); iter.valid; iter.next()) {
      if (canYield && this.mustYield(iter)) {
        if (state.flush) this.flush();
        state.flush = false;
        this.count('yields');
        iter.yielded = true;
        continue;
      }
      yield iter;
    }
  }
  /** At the deepest entry that maps the injected gfn, once the walk has moved since it started or last yielded. */
  private mustYield(iter: TdpIter): boolean {
    const gfn = this.yieldGfn;
    if (gfn === null || gfn >= iter.endGfn) return false;
    if (gfn < iter.gfn || gfn >= iter.gfn + pagesOf(iter.level)) return false;
    if (iter.entry.kind === 'table' && iter.level > iter.minLevel) return false;
    if (iter.nextLastLevelGfn === iter.yieldedGfn) return false;
    this.yieldGfn = null;
    return true;
  }
  yieldAt(gfn: number): void {
    this.yieldGfn = gfn;
  }

  private setSpte(root: Root, iter: TdpIter, entry: Entry, shared: boolean): void {
    this.write(root, iter.table, iter.index, iter.gfn, entry, shared);
  }

  /** The one place where an entry changes under a lock: handle_changed_spte(). */
  private write(root: Root, table: Table, index: number, gfn: number, entry: Entry, shared: boolean): void {
    const old = table.entries[index] as Entry;
    table.entries[index] = entry;
    this.handleChanged(root, gfn, table.level, old, entry, shared);
  }

  private handleChanged(root: Root, gfn: number, level: number, old: Entry, entry: Entry, shared: boolean): void {
    if (sameEntry(old, entry)) return;
    this.emit('spte_changed', {
      asId: root.asId,
      root: root.kind,
      gfn,
      level,
      old: meaning(old),
      new: meaning(entry),
    });
    if (old.kind === 'leaf' && entry.kind === 'leaf' && old.pfn !== entry.pfn)
      throw new Error('a leaf changed its pfn');
    if (old.kind === 'leaf' && entry.kind !== 'leaf' && entry.kind !== 'table') this.countZapped(root, level);
    if (old.kind === 'leaf' && !isPresent(entry) && root.kind === 'mirror') this.removeExternal(gfn);
    if (entry.kind === 'table') this.count('tables_allocated');
    if (old.kind === 'table' && entry.kind !== 'table') {
      this.count('tables_freed');
      this.untrackNx(old.table);
      for (let i = 0; i < 512; i++) {
        const child = old.table.entries[i] as Entry;
        if (!shared && !isPresent(child)) continue;
        this.write(root, old.table, i, old.table.gfn + i * pagesOf(old.table.level), FROZEN, shared);
      }
    }
  }

  private removeExternal(gfn: number): void {
    for (const name of [
      'TDH.MEM.RANGE.BLOCK',
      'TDH.MEM.TRACK',
      'kicks',
      'TDH.MEM.PAGE.REMOVE',
      'TDH.PHYMEM.PAGE.WBINVD',
    ]) {
      this.count(name);
    }
    if (this.accepted.delete(gfn)) {
      this.count('private_pages_lost');
      this.count('private_pages_to_accept');
    }
  }

  private trackNx(table: Table): void {
    if (table.nxTracked) return;
    table.nxTracked = true;
    this.nxTables.push(table);
    this.count('nx_lpage_splits');
  }
  private untrackNx(table: Table): void {
    if (!table.nxTracked) return;
    table.nxTracked = false;
    this.nxTables.splice(this.nxTables.indexOf(table), 1);
    this.count('nx_lpage_splits', -1);
  }

  // --- the kvm_gfn_range calls

  /** Which roots a range selects. */
  private kindsOf(range: Range): RootKind[] {
    if (!this.isTd) return ['direct'];
    const { onlyPrivate, onlyShared } = range;
    const toPrivate = (range.attributes & PRIVATE_ATTRIBUTE) !== 0;
    let shared = true;
    let priv = true;
    switch (this.filterForm) {
      case 'none':
        break;
      case 'attr-filter':
        shared = (range.attrFilter & SHARED) !== 0;
        priv = (range.attrFilter & PRIVATE) !== 0;
        break;
      case 'rfc-v4':
        if (onlyPrivate !== onlyShared) {
          shared = onlyShared;
          priv = onlyPrivate;
        } else if (!onlyPrivate) {
          shared = toPrivate;
          priv = !toPrivate;
        }
        break;
      case 'gmem-v13':
        if (onlyPrivate !== onlyShared) {
          shared = onlyShared;
          priv = onlyPrivate;
        }
        break;
      case 'tdx-v18':
        priv = !onlyPrivate && !onlyShared ? !toPrivate : onlyPrivate;
        break;
    }
    const kinds: RootKind[] = [];
    if (shared) kinds.push('direct');
    if (priv) kinds.push('mirror');
    return kinds;
  }

  private rangeFields(range: Range): Record<string, unknown> {
    return {
      slot: range.slot.id,
      asId: range.slot.asId,
      start: range.start,
      end: range.end,
      arg: range.attributes,
      attrFilter: range.attrFilter,
      mayBlock: range.mayBlock,
      onlyPrivate: range.onlyPrivate,
      onlyShared: range.onlyShared,
    };
  }

  private publicRange(r: GfnRange): Range {
    this.alive();
    const asId = r.asId ?? 0;
    const slot = this.slots.find((one) => one.asId === asId && one.id === r.slot);
    if (!slot || r.start >= r.end || r.start < slot.base || r.end > slotEnd(slot)) throw new ModelError('EINVAL');
    if (this.filterForm === 'gmem-v13' && r.onlyPrivate && r.onlyShared) throw new ModelError('EINVAL');
    return {
      slot,
      start: r.start,
      end: r.end,
      attributes: r.arg?.attributes ?? 0,
      mayBlock: r.mayBlock ?? false,
      onlyPrivate: r.onlyPrivate ?? false,
      onlyShared: r.onlyShared ?? false,
      attrFilter: r.attrFilter ?? 0,
    };
  }
  unmapGfnRange(r: GfnRange): boolean {
    return this.unmap(this.publicRange(r));
  }
  ageGfn(r: GfnRange): boolean {
    return this.age({ ...this.publicRange(r), attributes: 0 }, false);
  }
  testAgeGfn(r: GfnRange): boolean {
    return this.age({ ...this.publicRange(r), attributes: 0 }, true);
  }

  private unmap(range: Range): boolean {
    this.emit('unmap_gfn_range', this.rangeFields(range));
    let flush = false;
    for (const root of this.rootsOf(range.slot.asId, true, this.kindsOf(range))) {
      flush = this.zapLeafs(root, range.start, range.end, range.mayBlock, flush);
    }
    this.emit('unmap_gfn_range_ret', { ret: flush });
    return flush;
  }

  private zapLeafs(root: Root, start: number, end: number, canYield: boolean, flush: boolean): boolean {
    this.emit('zap_leafs', { start, end, canYield, flush });
    const state = { flush };
    for (const iter of this.walk(root, 1, start, Math.min(end, this.maxGfn), canYield, state)) {
      if (iter.entry.kind !== 'leaf') continue;
      this.countOutside(iter, start, end);
      this.setSpte(root, iter, EMPTY, false);
      if (root.valid) state.flush = true;
    }
    this.emit('zap_leafs_ret', { ret: state.flush });
    return state.flush;
  }
  private countZapped(root: Root, level: number): void {
    this.count(`leafs_zapped_${root.kind}_${['', '4k', '2m', '1g'][level]}`);
    this.count('gfns_zapped', pagesOf(level));
  }
  private countOutside(iter: TdpIter, start: number, end: number): void {
    const npages = pagesOf(iter.level);
    const inside = Math.min(end, iter.gfn + npages) - Math.max(start, iter.gfn);
    this.count('gfns_zapped_outside_request', npages - inside);
  }

  zapGfnRange(startGfn: number, endGfn: number): void {
    this.alive();
    this.begin();
    this.add(startGfn, endGfn);
    let flush = false;
    for (const root of this.roots) {
      if (!root.valid || (this.filterForm === 'tdx-v18' && root.kind === 'mirror')) continue;
      flush = this.zapLeafs(root, startGfn, endGfn, true, flush);
    }
    if (flush) this.flushRange(startGfn, endGfn - startGfn);
    this.end();
  }

  private age(range: Range, testOnly: boolean): boolean {
    const name = testOnly ? 'test_age_gfn' : 'age_gfn';
    this.emit(name, this.rangeFields(range));
    let young = false;
    const kinds = this.isTd ? this.kindsOf(range) : (['direct'] as const);
    search: for (const root of this.rootsOf(range.slot.asId, this.kernel !== 'linux-6.16', kinds)) {
      for (const iter of this.walk(root, 1, range.start, range.end, false)) {
        const entry = iter.entry;
        if (entry.kind !== 'leaf' || !entry.accessed) continue;
        young = true;
        if (testOnly && this.kernel === 'linux-6.16') break search;
        if (testOnly) continue;
        this.count('leafs_aged');
        this.setSpte(root, iter, { ...entry, accessed: false }, false);
      }
    }
    this.emit(`${name}_ret`, { ret: young });
    return young;
  }

  setSpteGfn(r: GfnRange): boolean {
    const range = this.publicRange(r);
    if (this.kernel !== 'rfc-v4') throw new ModelError('EOPNOTSUPP');
    if (r.end !== r.start + 1) throw new ModelError('EINVAL');
    const { pte } = r.arg ?? {};
    return this.setSpteRange({ ...range, attributes: pte ? (pte.writable ? 3 : 1) : 0 }, pte?.writable ?? false, null);
  }
  private setSpteRange(range: Range, writable: boolean, pfn: number | null): boolean {
    this.emit('set_spte_gfn', this.rangeFields(range));
    let flush = false;
    for (const root of this.rootsOf(range.slot.asId, true, this.kindsOf(range))) {
      for (const iter of this.walk(root, 1, range.start, range.end, false)) {
        const entry = iter.entry;
        if (entry.kind !== 'leaf' || iter.level !== 1) continue;
        this.setSpte(root, iter, EMPTY, false);
        if (!writable) {
          this.setSpte(
            root,
            iter,
            {
              ...entry,
              pfn: pfn ?? entry.pfn,
              writable: false,
              hostWritable: false,
              mmuWritable: false,
              accessed: false,
            },
            false,
          );
        }
        flush = true;
      }
    }
    this.emit('set_spte_gfn_ret', { ret: flush });
    return flush;
  }

  // --- invalidation

  private begin(): void {
    this.count('invalidations');
    this.emit('inv_begin', { inProgress: this.inProgress, seq: this.seq });
    if (++this.inProgress === 1) {
      this.invStart = INV_NONE;
      this.invEnd = INV_NONE;
    }
  }
  private add(start: number, end: number): void {
    this.emit('inv_add', { start, end });
    this.invStart = this.invStart === INV_NONE ? start : Math.min(this.invStart, start);
    this.invEnd = this.invEnd === INV_NONE ? end : Math.max(this.invEnd, end);
  }
  private end(): void {
    this.emit('inv_end', { seq: this.seq, inProgress: this.inProgress, start: this.invStart, end: this.invEnd });
    this.seq++;
    this.inProgress--;
  }
  get invalidate(): { inProgress: number; seq: number; start: number | null; end: number | null } {
    const none = this.invStart === INV_NONE;
    return {
      inProgress: this.inProgress,
      seq: this.seq,
      start: none ? null : this.invStart,
      end: none ? null : this.invEnd,
    };
  }
  retryGfn(seq: number, gfn: number): boolean {
    if (this.inProgress > 0 && this.invStart === INV_NONE) return true;
    return this.retryGfnUnsafe(seq, gfn);
  }
  retryGfnUnsafe(seq: number, gfn: number): boolean {
    return this.inHull(gfn) || seq !== this.seq;
  }
  private inHull(gfn: number): boolean {
    return this.inProgress > 0 && this.invStart !== INV_NONE && this.invStart <= gfn && gfn < this.invEnd;
  }
  retry(seq: number): boolean {
    return this.inProgress > 0 || seq !== this.seq;
  }

  /** hva pages to gfn ranges, address space by address space, slots by ascending hva. */
  private gfnRanges(startPage: number, endPage: number): { slot: Slot; start: number; end: number }[] {
    if (this.isDestroyed) return [];
    const ranges: { slot: Slot; start: number; end: number }[] = [];
    for (let asId = 0; asId < this.addressSpaces; asId++) {
      // Slots with the same hva come in the order in which they were put in.
      const byHva = this.slots.filter((slot) => slot.asId === asId).sort((a, b) => a.hva - b.hva);
      for (const slot of byHva) {
        const a = Math.max(startPage, slot.hva);
        const b = Math.min(endPage, slot.hva + slot.npages);
        if (a < b) ranges.push({ slot, start: slot.base + a - slot.hva, end: slot.base + b - slot.hva });
      }
    }
    return ranges;
  }
  private static readonly BY_NOTIFIER = { attributes: 0, onlyPrivate: false, onlyShared: true, attrFilter: SHARED };

  invalidateStart(startPage: number, endPage: number, mayBlock: boolean): void {
    if (!this.isDestroyed)
      this.emit('kvm_unmap_hva_range', { start: BigInt(startPage) * 4096n, end: BigInt(endPage) * 4096n });
    let flush = false;
    const ranges = this.gfnRanges(startPage, endPage);
    if (ranges.length > 0) this.begin();
    for (const range of ranges) {
      this.add(range.start, range.end);
      if (this.unmap({ ...range, ...ModelVm.BY_NOTIFIER, mayBlock })) flush = true;
    }
    if (flush) this.flush();
    if (ranges.length > 0) this.emit('reclaimed');
  }
  invalidateEnd(startPage: number, endPage: number): void {
    if (this.gfnRanges(startPage, endPage).length > 0) this.end();
  }
  hvaAge(startPage: number, endPage: number): boolean {
    if (!this.isDestroyed) this.emit('kvm_age_hva', { start: BigInt(startPage) * 4096n, end: BigInt(endPage) * 4096n });
    let young = false;
    for (const range of this.gfnRanges(startPage, endPage)) {
      if (this.age({ ...range, ...ModelVm.BY_NOTIFIER, mayBlock: false }, false)) young = true;
    }
    return young;
  }
  hvaTestAge(page: number): boolean {
    if (!this.isDestroyed)
      this.emit('kvm_test_age_hva', { start: BigInt(page) * 4096n, end: BigInt(page) * 4096n + 1n });
    let young = false;
    for (const range of this.gfnRanges(page, page + 1)) {
      if (this.age({ ...range, ...ModelVm.BY_NOTIFIER, mayBlock: false }, true)) young = true;
    }
    return young;
  }
  hvaChangePte(page: number, writable: boolean, pfn: number): void {
    let flush = false;
    for (const range of this.gfnRanges(page, page + 1)) {
      const attributes = writable ? 3 : 1;
      if (this.setSpteRange({ ...range, ...ModelVm.BY_NOTIFIER, mayBlock: false, attributes }, writable, pfn))
        flush = true;
    }
    if (flush) this.flush();
  }

  // --- memory attributes

  setMemoryAttributes(a: { address: U64; size: U64; attributes: U64; flags?: U64 }): void {
    this.alive();
    const address = big(a.address);
    const size = big(a.size);
    const value = big(a.attributes);
    if (big(a.flags ?? 0) !== 0n) throw new ModelError('EINVAL');
    if (value & ~(this.hasPrivateMem ? BigInt(PRIVATE_ATTRIBUTE) : 0n)) throw new ModelError('EINVAL');
    if (size === 0n || address + size > U64_MAX) throw new ModelError('EINVAL');
    if (!isPageAligned(address) || !isPageAligned(size)) throw new ModelError('EINVAL');
    const start = toGfn(address);
    const end = toGfn(address + size);
    const attributes = Number(value);
    if (!this.hasPrivateMem) return;
    let same = true;
    for (let gfn = start; gfn < end && same; gfn++) same = this.attributesOf(gfn) === attributes;
    if (same) return;
    const ranges: { slot: Slot; start: number; end: number }[] = [];
    for (let asId = 0; asId < this.addressSpaces; asId++) {
      for (const slot of this.slotsOf(asId)) {
        const range = { slot, start: Math.max(start, slot.base), end: Math.min(end, slotEnd(slot)) };
        if (range.start < range.end) ranges.push(range);
      }
    }
    if (ranges.length > 0) this.begin();
    let flush = false;
    for (const range of ranges) {
      this.add(range.start, range.end);
      if (this.preSetAttributes(range, attributes)) flush = true;
    }
    if (flush) this.flush();
    this.count('attribute_xarray_ops', 2 * (end - start));
    for (let gfn = start; gfn < end; gfn++) {
      if (attributes === 0) this.attributes.delete(gfn);
      else this.attributes.set(gfn, attributes);
    }
    if (ranges.length > 0) this.end();
    for (const range of ranges) {
      this.emit('post_attr', this.attributeFields(range, attributes));
      postSetMixed(range.slot, range.start, range.end, attributes, (gfn) => this.attributesOf(gfn));
    }
  }
  private attributeFields(range: { slot: Slot; start: number; end: number }, arg: number): Record<string, unknown> {
    return { slot: range.slot.id, asId: range.slot.asId, start: range.start, end: range.end, arg, mayBlock: true };
  }
  private preSetAttributes(range: { slot: Slot; start: number; end: number }, attributes: number): boolean {
    this.emit('pre_attr', this.attributeFields(range, attributes));
    if (this.hugepageGuard) {
      for (const [start, end] of guardRegions(range.slot, range.start, range.end)) this.add(start, end);
    }
    // The RFC's vendor callback: an SNP guest leaves everything to guest_memfd.
    if (this.filterForm === 'rfc-v4' && this.type === 'snp') return false;
    const toPrivate = (attributes & PRIVATE_ATTRIBUTE) !== 0;
    return this.unmap({
      ...range,
      attributes,
      mayBlock: true,
      onlyPrivate: false,
      onlyShared: false,
      attrFilter: toPrivate ? SHARED : PRIVATE,
    });
  }

  // --- guest_memfd

  createGuestMemfd(a: { size: U64; flags?: U64 }): ModelGuestMemfd {
    this.alive();
    const size = big(a.size);
    if (big(a.flags ?? 0) !== 0n) throw new ModelError('EINVAL');
    if (size === 0n || size >= 1n << 63n || !isPageAligned(size)) throw new ModelError('EINVAL');
    const file = new GmemFile(this.nextFd++, toGfn(size));
    this.files.set(file.fd, file);
    return new ModelGuestMemfd(this, file);
  }
  /** Makes the numbers in the model those of the engine. */
  renumber(file: GmemFile, fd: number): ModelGuestMemfd {
    this.files.delete(file.fd);
    const renamed = new GmemFile(fd, file.npages);
    this.files.set(fd, renamed);
    return new ModelGuestMemfd(this, renamed);
  }

  private bind(slot: Slot, fd: number, offset: bigint): void {
    const file = this.files.get(fd);
    if (!file?.isOpen) throw new ModelError(this.foreignFds.has(fd) ? 'EINVAL' : 'EBADF');
    if (offset >= 1n << 63n || toGfn(offset) + slot.npages > file.npages) throw new ModelError('EINVAL');
    const pgoff = toGfn(offset);
    const taken = file.slots.some((other) => {
      const at = other.gmem?.pgoff ?? 0;
      return at < pgoff + slot.npages && pgoff < at + other.npages;
    });
    if (taken) throw new ModelError('EINVAL');
    slot.gmem = { file, pgoff };
    file.slots.push(slot);
  }
  readonly foreignFds = new Set<number>();

  private unbind(slot: Slot): void {
    const slots = slot.gmem?.file.slots;
    const index = slots?.indexOf(slot) ?? -1;
    if (slots && index >= 0) slots.splice(index, 1);
  }

  /** Zaps what maps [start, end) of the file, in pages. `during` runs while the invalidation is in progress. */
  gmemInvalidate(file: GmemFile, start: number, end: number, during: () => void): void {
    this.emit('gmem_inval_begin', { start, end });
    const visits: { slot: Slot; at: number }[] = [];
    for (const slot of file.slots) {
      for (const [first, last] of bindingPieces(slot.gmem?.pgoff ?? 0, slot.npages)) {
        if (first < end && start < last) visits.push({ slot, at: first });
      }
    }
    visits.sort((a, b) => a.at - b.at);
    if (visits.length > 0) this.begin();
    let flush = false;
    for (const { slot } of visits) {
      const pgoff = slot.gmem?.pgoff ?? 0;
      const range = {
        slot,
        start: slot.base + Math.max(pgoff, start) - pgoff,
        end: slot.base + Math.min(pgoff + slot.npages, end) - pgoff,
      };
      this.add(range.start, range.end);
      const zapped = this.unmap({
        ...range,
        attributes: 0,
        mayBlock: true,
        onlyPrivate: true,
        onlyShared: false,
        attrFilter: PRIVATE,
      });
      if (zapped) flush = true;
    }
    if (flush) this.flush();
    during();
    if (visits.length > 0) this.end();
  }

  gmemPage(file: GmemFile, index: number): number {
    let pfn = file.pages.get(index);
    if (pfn === undefined) {
      pfn = this.nextGmemPfn--;
      file.pages.set(index, pfn);
      this.count('gmem_pages_allocated');
    }
    return pfn;
  }
  contentWritten(gfn: number): void {
    const slot = this.slotAt(0, gfn);
    if (slot?.gmem) slot.gmem.file.written.add(gfn - slot.base + slot.gmem.pgoff);
  }
  gmemFree(file: GmemFile, start: number, end: number): void {
    for (const index of [...file.pages.keys()]) {
      if (index < start || index >= end) continue;
      file.pages.delete(index);
      file.poisoned.delete(index);
      this.count('gmem_pages_freed');
      if (file.written.delete(index)) this.count('private_pages_lost');
    }
  }
  gmemClosed(): void {
    if (this.isClosed && ![...this.files.values()].some((file) => file.isOpen)) this.teardown();
  }

  // --- whole-tree operations

  private zapAllFast(): void {
    this.emit('zap_all_fast');
    this.emit('inv_roots');
    for (const root of this.roots) {
      if (!root.valid || root.kind === 'mirror') continue;
      root.valid = false;
      root.scheduled = true;
    }
    this.request(FREE_OBSOLETE_ROOTS);
    this.emit('zap_inv_roots');
    this.zapScheduled();
  }
  private zapScheduled(isUninit = false): void {
    for (const root of [...this.roots]) {
      if (!root.scheduled) continue;
      root.scheduled = false;
      // Mirror tables are never zapped under the read lock; 6.16 uninits under the write lock altogether.
      this.zapRoot(root, !(isUninit && (root.kind === 'mirror' || this.kernel === 'linux-6.16')));
      this.dropRoot(root);
    }
  }
  /** Forgets an invalid root that no vCPU holds. */
  dropRoot(root: Root): void {
    if (root.valid || root.scheduled || this.vcpus.some((vcpu) => vcpu.roots.includes(root))) return;
    this.roots = this.roots.filter((other) => other !== root);
  }

  private zapRoot(root: Root, shared: boolean): void {
    for (const level of [1, 2, 3, root.level]) {
      this.emit('zap_root', { shared, level });
      for (const iter of this.walk(root, level, 0, this.maxGfn, true)) {
        if (!isPresent(iter.entry) || iter.level > level) continue;
        this.setSpte(root, iter, EMPTY, shared);
      }
    }
  }

  destroy(): void {
    if (this.isClosed) throw new ModelError('EBADF');
    this.isClosed = true;
    this.gmemClosed();
  }
  private teardown(): void {
    this.emit('flush_shadow_all');
    this.emit('zap_all');
    for (const root of [...this.roots]) if (root.kind === 'direct') this.zapRoot(root, false);
    this.emit('reclaimed');
    for (const vcpu of this.vcpus) vcpu.roots = [];
    for (const root of [...this.roots]) this.dropRoot(root);
    this.emit('inv_roots');
    for (const root of this.roots) {
      root.valid = false;
      root.scheduled = true;
    }
    this.emit('zap_inv_roots');
    this.zapScheduled(true);
    this.isDestroyed = true;
  }

  private zapCollapsible(slot: Slot): void {
    for (const root of this.rootsOf(slot.asId, false)) {
      for (const iter of this.walk(root, 2, slot.base, slotEnd(slot), true)) {
        if (iter.level > 3 || iter.entry.kind !== 'table') continue;
        if (iter.gfn < slot.base || iter.gfn >= slotEnd(slot)) continue;
        if (this.maxMappingLevel(slot, iter.gfn, 3, false) < iter.level) continue;
        this.flushRange(iter.gfn, pagesOf(iter.level));
        this.setSpte(root, iter, EMPTY, true);
      }
    }
  }
  private recoverHugePages(slot: Slot): void {
    for (const root of this.rootsOf(slot.asId, false)) {
      const state = { flush: false };
      for (const iter of this.walk(root, 2, slot.base, slotEnd(slot), true, state)) {
        const entry = iter.entry;
        if (iter.level > 3 || entry.kind !== 'table') continue;
        if (iter.gfn < slot.base || iter.gfn >= slotEnd(slot)) continue;
        if (this.maxMappingLevel(slot, iter.gfn, 3, false) < iter.level) continue;
        const leaf = this.firstLeaf(entry.table, iter.gfn);
        if (!leaf) continue;
        this.setSpte(root, iter, { ...leaf, executable: leaf.executable && !this.nxHugePages }, true);
        state.flush = true;
      }
      if (state.flush) this.flushRange(slot.base, slot.npages);
    }
  }
  private firstLeaf(table: Table, gfn: number): Leaf | null {
    for (let i = 0; i < 512; i++) {
      const child = table.entries[i] as Entry;
      const at = table.gfn + i * pagesOf(table.level);
      if (child.kind === 'leaf') return { ...child, pfn: child.pfn - (at - gfn) };
      const below = child.kind === 'table' ? this.firstLeaf(child.table, gfn) : null;
      if (below) return below;
    }
    return null;
  }

  private splitHugePages(slot: Slot, start: number, end: number, shared: boolean): void {
    this.emit('split_huge', { slot: slot.id, start, end, target: 1, shared });
    for (const root of this.rootsOf(slot.asId, false)) {
      for (const iter of this.walk(root, 2, start, end, true)) {
        if (iter.entry.kind === 'leaf') this.splitHuge(root, iter, shared);
      }
    }
  }
  private splitHuge(root: Root, iter: TdpIter, shared: boolean): Table {
    const huge = iter.entry as Leaf;
    const level = iter.level - 1;
    const table = new Table(level, iter.gfn);
    for (let i = 0; i < 512; i++) {
      const executable = huge.executable || (level === 1 && this.nxHugePages);
      table.entries[i] = { ...huge, pfn: huge.pfn + i * pagesOf(level), executable };
    }
    this.setSpte(root, iter, { kind: 'table', table }, shared);
    this.count('splits');
    this.emit('split_huge_page', { gfn: iter.gfn, level: iter.level });
    return table;
  }

  recoverNxHugePages(): number {
    this.alive();
    let zapped = 0;
    // By gfn, as the engine does (docs/fidelity.md): KVM takes the oldest first.
    for (const table of [...this.nxTables].sort((a, b) => a.gfn - b.gfn || b.level - a.level)) {
      for (const root of this.roots) {
        const parent = this.findParent(root.table, table);
        if (!parent) continue;
        this.emit('zap_sp');
        this.write(root, parent.table, parent.index, table.gfn, EMPTY, false);
        zapped++;
      }
    }
    if (zapped > 0) this.flush();
    return zapped;
  }
  private findParent(at: Table, wanted: Table): { table: Table; index: number } | null {
    for (let index = 0; index < 512; index++) {
      const entry = at.entries[index] as Entry;
      if (entry.kind !== 'table') continue;
      if (entry.table === wanted) return { table: at, index };
      const below = this.findParent(entry.table, wanted);
      if (below) return below;
    }
    return null;
  }

  // --- faults

  loadRoots(vcpu: ModelVcpu): void {
    for (const kind of this.isTd ? (['mirror', 'direct'] as const) : (['direct'] as const)) {
      if (vcpu.roots.some((root) => root.kind === kind && root.asId === vcpu.asId)) continue;
      let root = this.roots.find((one) => one.kind === kind && one.asId === vcpu.asId && one.valid);
      if (!root) {
        root = new Root(vcpu.asId, kind, this.rootLevel, kind === 'direct' ? this.sharedBit : 0);
        this.roots.unshift(root);
      }
      vcpu.roots.push(root);
    }
  }

  entryAt(root: Root, gfn: number): { table: Table; index: number; level: number; entry: Entry } {
    let table = root.table;
    for (let level = root.level; ; level--) {
      const index = root.index(gfn, level);
      const entry = table.entries[index] as Entry;
      if (entry.kind !== 'table') return { table, index, level, entry };
      table = entry.table;
    }
  }

  private maxMappingLevel(slot: Slot, gfn: number, max: number, isPrivate: boolean): number {
    let level = max;
    while (level > 1 && isDisallowed(slot, level as 2 | 3, gfn)) level--;
    if (isPrivate || level === 1) return level;
    return Math.min(level, this.hostModel.lookup(slot.hva + gfn - slot.base)?.level ?? 1);
  }

  /** f0 to f9: everything up to mmu_lock. */
  faultBegin(
    vcpu: ModelVcpu,
    gfn: number,
    kind: AccessKind,
    isPrivate: boolean,
    prefetch: boolean,
    rsvd = false,
  ): Fault {
    const root = vcpu.rootFor(isPrivate);
    const slot = this.slotAt(vcpu.asId, gfn);
    const fault: Fault = {
      vcpu,
      gfn,
      kind,
      private: isPrivate,
      prefetch,
      slot,
      seq: this.seq,
      maxLevel: 3,
      reqLevel: 1,
      goalLevel: 1,
      hugePageDisallowed: false,
      pfn: 0,
      mapWritable: false,
      errno: 'EFAULT',
      root,
      early: null,
      frozen: null,
    };
    if (!prefetch && !rsvd && root?.kind === 'direct') fault.early = this.fastFault(fault, root);
    if (fault.early) return fault;
    fault.seq = this.seq;
    if (isPrivate !== this.isPrivate(gfn)) fault.early = 'memory_fault';
    else if (!slot) {
      if (isPrivate) fault.early = 'memory_fault';
      else {
        vcpu.mmioGfn = gfn;
        vcpu.mmioGeneration = this.generations[0];
        if (!this.mmioCaching || gfn >= this.maxGfn) fault.early = 'emulate';
      }
    } else if (this.retryGfnUnsafe(fault.seq, gfn)) {
      this.count('retries_hull');
      fault.early = 'retry';
    } else fault.early = isPrivate ? this.faultinPrivate(fault, slot) : this.faultinShared(fault, slot);
    return fault;
  }

  private fastFault(fault: Fault, root: Root): FaultResult | null {
    if (fault.kind !== 'write' || fault.private !== this.isPrivate(fault.gfn)) return null;
    const { table, index, level, entry } = this.entryAt(root, fault.gfn);
    if (entry.kind !== 'leaf') return null;
    if (entry.writable) {
      this.count('pf_fast');
      return 'spurious';
    }
    if (!entry.mmuWritable || (level > 1 && fault.slot && isLogged(fault.slot))) return null;
    table.entries[index] = { ...entry, writable: true };
    fault.slot?.dirty?.add(fault.gfn - fault.slot.base);
    this.count('pf_fast');
    return 'fixed';
  }

  private faultinPrivate(fault: Fault, slot: Slot): FaultResult | null {
    if (!slot.gmem?.file.isOpen) return 'memory_fault';
    const { file, pgoff } = slot.gmem;
    const index = fault.gfn - slot.base + pgoff;
    if (file.poisoned.has(index)) {
      fault.errno = 'EHWPOISON';
      return 'memory_fault';
    }
    fault.pfn = this.gmemPage(file, index);
    fault.mapWritable = true;
    fault.maxLevel = 1;
    return null;
  }

  private faultinShared(fault: Fault, slot: Slot): FaultResult | null {
    const write = fault.kind === 'write';
    if (write && slot.flags & READONLY) return 'emulate';
    const mapping: HostMapping | undefined = this.hostModel.fault(slot.hva + fault.gfn - slot.base, write);
    if (!mapping) return 'error';
    fault.pfn = mapping.pfn;
    fault.mapWritable = mapping.writable && !(slot.flags & READONLY);
    if (this.retryGfnUnsafe(fault.seq, fault.gfn)) {
      this.count(this.inHull(fault.gfn) ? 'retries_hull' : 'retries_seq');
      return 'retry';
    }
    return null;
  }

  /** f10, f11: under mmu_lock. */
  faultFinish(fault: Fault): FaultResult {
    if (fault.early) return fault.early;
    if (fault.frozen) return this.thaw(fault);
    const { root, slot, gfn } = fault;
    if (!root?.valid) return 'retry';
    if (slot && this.retryGfn(fault.seq, gfn)) {
      this.count(this.inHull(gfn) ? 'retries_hull' : 'retries_seq');
      return 'retry';
    }
    this.adjustLevel(fault);
    for (const iter of this.walk(root, 1, gfn, gfn + 1, false)) {
      const entry = iter.entry;
      if (this.nxHugePages && iter.level === fault.goalLevel && entry.kind === 'table' && entry.table.nxDisallowed) {
        fault.goalLevel--;
      }
      if (entry.kind === 'frozen') {
        this.count('retries_frozen');
        return 'retry';
      }
      if (iter.level === fault.goalLevel) return this.install(fault, root, iter);
      if (entry.kind === 'table') continue;
      let table: Table;
      if (entry.kind === 'leaf' && this.wouldSwapPfn(fault, entry, iter.level)) {
        this.dead = true;
        fault.errno = 'EIO';
        return 'error';
      }
      if (entry.kind === 'leaf') table = this.splitHuge(root, iter, true);
      else {
        table = new Table(iter.level - 1, iter.gfn);
        this.setSpte(root, iter, { kind: 'table', table }, true);
        if (root.kind === 'mirror') this.count('TDH.MEM.SEPT.ADD');
      }
      table.nxDisallowed = fault.hugePageDisallowed;
      if (fault.hugePageDisallowed && fault.reqLevel >= iter.level) this.trackNx(table);
    }
    throw new Error('the walk of a fault must end at its goal level');
  }

  /** Whether a huge leaf maps another page than the fault would: its child could only be replaced by another's. */
  private wouldSwapPfn(fault: Fault, huge: Leaf, level: number): boolean {
    if (!fault.slot || huge.private === fault.private) return false;
    if (this.kernel !== 'linux-6.16') return true;
    // 6.16 leaves alone what lets the access through.
    const child = { ...huge, executable: huge.executable || (this.nxHugePages && level === 2) };
    return !fault.prefetch && !this.allows(child, fault.kind);
  }

  private adjustLevel(fault: Fault): void {
    fault.hugePageDisallowed = fault.kind === 'exec' && this.nxHugePages;
    if (fault.maxLevel === 1 || !fault.slot || isLogged(fault.slot)) return;
    fault.reqLevel = this.maxMappingLevel(fault.slot, fault.gfn, fault.maxLevel, fault.private);
    if (fault.reqLevel > 1 && !fault.hugePageDisallowed) fault.goalLevel = fault.reqLevel;
  }

  private allows(leaf: Leaf, kind: AccessKind): boolean {
    return kind === 'read' || (kind === 'write' ? leaf.writable : leaf.executable);
  }

  private install(fault: Fault, root: Root, iter: TdpIter): FaultResult {
    const { slot, kind, prefetch } = fault;
    const old = iter.entry;
    if (old.kind === 'leaf' && (this.kernel === 'linux-6.16' || root.kind === 'mirror')) {
      if (prefetch || this.allows(old, kind)) return 'spurious';
    }
    if (!slot) {
      const generation = this.generations[fault.vcpu.asId] as number;
      this.setSpte(root, iter, { kind: 'mmio', generation }, true);
      this.count('pf_mmio_spte_created');
      this.emit('mark_mmio_spte', { gfn: fault.gfn });
      return 'emulate';
    }
    const wasWritable = old.kind === 'mmio' || (old.kind === 'leaf' && old.writable);
    const leaf: Leaf = {
      kind: 'leaf',
      pfn: fault.pfn - (fault.gfn - roundDown(fault.gfn, iter.level)),
      writable: fault.mapWritable,
      executable: !(iter.level > 1 && this.nxHugePages),
      accessed: !prefetch,
      dirty: fault.mapWritable && !wasWritable,
      hostWritable: fault.mapWritable,
      mmuWritable: fault.mapWritable,
      private: fault.private,
      pending: root.kind === 'mirror',
    };
    if (leaf.writable) slot.dirty?.add(fault.gfn - slot.base);
    if (sameEntry(old, leaf)) return 'spurious';
    if (old.kind === 'leaf' && old.pfn !== leaf.pfn) {
      this.dead = true;
      fault.errno = 'EIO';
      return 'error';
    }
    if (root.kind === 'mirror') {
      iter.table.entries[iter.index] = FROZEN;
      fault.frozen = { table: iter.table, index: iter.index, gfn: iter.gfn, level: iter.level, old, entry: leaf };
      return 'frozen';
    }
    this.setSpte(root, iter, leaf, true);
    if (old.kind === 'table') this.flushRange(iter.gfn, pagesOf(iter.level));
    return 'fixed';
  }

  private thaw(fault: Fault): FaultResult {
    const { table, index, gfn, level, old, entry } = fault.frozen as NonNullable<Fault['frozen']>;
    table.entries[index] = entry;
    this.count('TDH.MEM.PAGE.AUG');
    this.handleChanged(fault.root as Root, gfn, level, old, entry, true);
    return 'fixed';
  }

  /** A whole fault, without stops. */
  fault(
    vcpu: ModelVcpu,
    gfn: number,
    kind: AccessKind,
    isPrivate: boolean,
    prefetch: boolean,
    rsvd = false,
  ): Fault & { result: FaultResult } {
    const fault = this.faultBegin(vcpu, gfn, kind, isPrivate, prefetch, rsvd);
    let result = this.faultFinish(fault);
    if (result === 'frozen') result = this.faultFinish(fault);
    return { ...fault, result };
  }
}
