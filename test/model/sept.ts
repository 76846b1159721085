// A TD in the plainest words: an array entry per page for what the mirror holds, what the S-EPT holds, and what is behind;
// one call of the module after the other. Written from sections 7.1 to 7.10 of the specification; shares no code with the
// engine. One slot [0, npages) over one guest_memfd, page = gfn; four levels, below 1 GiB, so one table each of 1G and 2M
// entries, and one of 4K entries for each region of 512 gfns.

export interface TdConfig {
  npages: number;
  vcpus: number;
  hugePages: boolean;
  /** Whether the file has folios of 2M; only such are mapped by 2M. */
  folios: boolean;
  zap: 'whole-leaf' | 'split-first' | 'split-boundary';
  track: 'per-page' | 'batched';
  localRetry: boolean;
  build: boolean;
}

interface ModelVcpu {
  /** Told to run guest code: comes back inside whenever it can. */
  inGuest: boolean;
  inTd: boolean;
  epoch: number;
  accept: { gfn: number; level: number } | null;
  /** VP.ENTER checks faulting addresses and holds the tree. */
  entering: boolean;
  faults: number;
}

/** An S-EPT leaf; each of the gfns that it maps refers to the same object. */
interface SeptLeaf {
  gfn: number;
  level: number;
  pending: boolean;
  /** The epoch in which it was blocked, or null. */
  blocked: number | null;
}
interface MirrorLeaf {
  gfn: number;
  level: number;
}

/** How often a vCPU, and a pre-fault, try before the simulator gives up for them. */
const ATTEMPTS = 16;
const PRE_FAULT_ATTEMPTS = 4;
const ZERO_STEP_THRESHOLD = 6;
const REGION = 512;
const pagesOf = (level: number) => (level === 1 ? 1 : level === 2 ? REGION : REGION * REGION);
const OK = 'TDX_SUCCESS';
const BUSY = 'TDX_OPERAND_BUSY';
const STATE = 'TDX_EPT_ENTRY_STATE_INCORRECT';
const WALK = 'TDX_EPT_WALK_FAILED';

export type Fault = 'fixed' | 'spurious' | 'retry' | 'EFAULT' | 'EIO';

/** Thrown where KVM refuses a call. */
export class Refused extends Error {
  readonly code: string;
  constructor(code: string) {
    super(code);
    this.code = code;
  }
}

export class SeptModel {
  readonly config: TdConfig;
  readonly #regions: number;
  // KVM's side.
  hasSlot = true;
  isPrivate: boolean[];
  mirror: (MirrorLeaf | null)[];
  /** Linked tables of the mirror: of 1G entries, of 2M entries, of 4K entries by region. */
  mirrorTables = { g1: false, m2: false, k4: [] as boolean[] };
  inhibited: boolean[];
  dead = false;
  waiting = false;
  premapped = 0;
  /** A call went past KVM or failed: zaps go by the mirror alone. */
  diverged = false;
  // The module.
  state: 'build' | 'runnable' | 'teardown';
  sept: (SeptLeaf | null)[];
  septTables = { g1: false, m2: false, k4: [] as boolean[] };
  /** Blocked tables, by the entry that links them. */
  blockedTables = new Map<string, number>();
  epoch = 1;
  vcpus: ModelVcpu[];
  /** The vCPU whose fault is under way: nothing brings it back inside before that ends. */
  #faulting: ModelVcpu | null = null;
  inject: { leaf: string; status: string; skip: number; times: number } | null = null;
  // guest_memfd.
  resident: boolean[];
  written: boolean[];
  touched: boolean[];
  owned: boolean[];
  /** By region: allocated as one folio of 2M, and whole still. */
  isFolio: boolean[];
  /** Calls by leaf function, other counters by name, and `leaf status` for each that failed. */
  counts = new Map<string, number>();

  constructor(config: TdConfig) {
    const { npages } = config;
    const filled = <T>(value: T) => Array.from({ length: npages }, () => value);
    this.config = config;
    this.#regions = Math.ceil(npages / REGION);
    this.state = config.build ? 'build' : 'runnable';
    this.isPrivate = filled(false);
    this.mirror = filled(null);
    this.sept = filled(null);
    this.resident = filled(false);
    this.written = filled(false);
    this.touched = filled(false);
    this.owned = filled(false);
    this.inhibited = Array.from({ length: this.#regions }, () => false);
    this.mirrorTables.k4 = [...this.inhibited];
    this.isFolio = [...this.inhibited];
    this.septTables.k4 = [...this.inhibited];
    this.vcpus = Array.from({ length: config.vcpus }, () => ({
      inGuest: false,
      inTd: false,
      epoch: 0,
      accept: null,
      entering: false,
      faults: 0,
    }));
  }

  #count(name: string, by = 1): void {
    if (by !== 0) this.counts.set(name, (this.counts.get(name) ?? 0) + by);
  }

  // --- The module ----------------------------------------------------------------------------------------------------

  /** Books a call, unless it is to fail for another reason. */
  #call(leaf: string, decide: () => string): string {
    const status = this.#injected(leaf) ?? decide();
    this.#count(leaf);
    if (status !== OK) this.#count(`${leaf} ${status}`);
    return status;
  }
  #injected(leaf: string): string | undefined {
    const { inject } = this;
    if (inject === null || inject.leaf !== leaf || inject.times === 0) return undefined;
    if (inject.skip > 0) {
      inject.skip--;
      return undefined;
    }
    inject.times--;
    return inject.status;
  }

  get #exclusive(): boolean {
    return this.vcpus.some((vcpu) => vcpu.entering);
  }
  get #shared(): boolean {
    return this.vcpus.some((vcpu) => vcpu.accept !== null);
  }
  /** Whether a call that shares the tree finds it, or the entry of `gfn`, locked. */
  #busy(gfn: number): boolean {
    if (this.#exclusive) return true;
    return this.vcpus.some(({ accept }) => {
      return accept !== null && gfn >= accept.gfn && gfn < accept.gfn + pagesOf(accept.level);
    });
  }
  #valid(gfn: number, level: number, highest: number): boolean {
    return level >= 1 && level <= highest && gfn % pagesOf(level) === 0;
  }
  /** The level of the entry that a walk for `gfn` ends at: a leaf's, or that of the lowest entries linked. */
  #reaches(gfn: number): number {
    const leaf = this.sept[gfn];
    if (leaf) return leaf.level;
    const { g1, m2, k4 } = this.septTables;
    return k4[Math.floor(gfn / REGION)] ? 1 : m2 ? 2 : g1 ? 3 : 4;
  }
  #tableBlocked(gfn: number, level: number): boolean {
    return this.blockedTables.has(`${level} ${Math.floor(gfn / pagesOf(level)) * pagesOf(level)}`);
  }
  #underBlocked(gfn: number, from = 2): boolean {
    for (let level = from; level <= 3; level++) if (this.#tableBlocked(gfn, level)) return true;
    return false;
  }
  #readers(epoch: number): number {
    return this.vcpus.filter((vcpu) => vcpu.inTd && (vcpu.epoch - epoch) % 2 === 0).length;
  }

  /** `level` is that of the entry which is to link a table. */
  septAdd(gfn: number, level: number): string {
    return this.#call('TDH.MEM.SEPT.ADD', () => {
      if (this.#busy(gfn)) return BUSY;
      if (level < 2 || !(level === 4 ? gfn === 0 : this.#valid(gfn, level, 3))) return 'TDX_OPERAND_INVALID';
      if (this.state === 'teardown') return 'TDX_OP_STATE_INCORRECT';
      if (this.#underBlocked(gfn) || this.#reaches(gfn) > level) return WALK;
      if (this.#reaches(gfn) < level || this.sept[gfn]) return STATE;
      if (level === 4) this.septTables.g1 = true;
      else if (level === 3) this.septTables.m2 = true;
      else this.septTables.k4[gfn / REGION] = true;
      return OK;
    });
  }
  #canMap(gfn: number, level: number): string {
    if (this.#busy(gfn)) return BUSY;
    if (this.#underBlocked(gfn)) return WALK;
    const reached = this.#reaches(gfn);
    if (reached > level) return this.sept[gfn] ? STATE : WALK;
    return reached < level || this.sept[gfn] ? STATE : OK;
  }
  #put(gfn: number, level: number, pending: boolean): void {
    const leaf: SeptLeaf = { gfn, level, pending, blocked: null };
    for (let page = gfn; page < gfn + pagesOf(level); page++) {
      this.sept[page] = leaf;
      if (this.hasSlot && this.resident[page]) this.owned[page] = true;
    }
  }
  #ownedIn(gfn: number, level: number): boolean {
    if (!this.hasSlot) return false;
    for (let page = gfn; page < gfn + pagesOf(level); page++) if (this.owned[page]) return true;
    return false;
  }
  aug(gfn: number, level: number): string {
    return this.#call('TDH.MEM.PAGE.AUG', () => {
      if (!this.#valid(gfn, level, 2)) return 'TDX_OPERAND_INVALID';
      if (this.state !== 'runnable') return 'TDX_OP_STATE_INCORRECT';
      const can = this.#canMap(gfn, level);
      if (can !== OK) return can;
      if (this.#ownedIn(gfn, level)) return 'TDX_PAGE_METADATA_INCORRECT';
      this.#put(gfn, level, true);
      return OK;
    });
  }
  pageAdd(gfn: number, level: number): string {
    return this.#call('TDH.MEM.PAGE.ADD', () => {
      if (!this.#valid(gfn, level, 1)) return 'TDX_OPERAND_INVALID';
      if (this.state !== 'build') return 'TDX_OP_STATE_INCORRECT';
      const can = this.#canMap(gfn, level);
      if (can !== OK) return can;
      if (this.#ownedIn(gfn, level)) return 'TDX_PAGE_METADATA_INCORRECT';
      this.#put(gfn, level, false);
      return OK;
    });
  }
  block(gfn: number, level: number): string {
    return this.#call('TDH.MEM.RANGE.BLOCK', () => {
      if (this.#exclusive || this.#shared) return BUSY;
      if (!this.#valid(gfn, level, 3)) return 'TDX_OPERAND_INVALID';
      if (this.state === 'teardown') return 'TDX_OP_STATE_INCORRECT';
      const leaf = this.sept[gfn];
      const reached = this.#reaches(gfn);
      if (this.#underBlocked(gfn, level + 1) || reached > level) return leaf ? STATE : WALK;
      if (reached < level) {
        if (this.#tableBlocked(gfn, level)) return 'TDX_GPA_RANGE_ALREADY_BLOCKED';
        this.blockedTables.set(`${level} ${gfn}`, this.epoch);
        return OK;
      }
      if (!leaf) return STATE;
      if (leaf.blocked !== null) return 'TDX_GPA_RANGE_ALREADY_BLOCKED';
      leaf.blocked = this.epoch;
      return OK;
    });
  }
  trackOnce(): string {
    return this.#call('TDH.MEM.TRACK', () => {
      if (this.state !== 'runnable') return 'TDX_OP_STATE_INCORRECT';
      if (this.#readers(this.epoch - 1) > 0) return 'TDX_PREVIOUS_TLB_EPOCH_BUSY';
      this.epoch++;
      return OK;
    });
  }
  #blockedAndTracked(blocked: number | null | undefined): string {
    if (this.state !== 'runnable') return OK;
    if (blocked === null || blocked === undefined) return 'TDX_GPA_RANGE_NOT_BLOCKED';
    const tracked = blocked < this.epoch - 1 || (blocked === this.epoch - 1 && this.#readers(blocked) === 0);
    return tracked ? OK : 'TDX_TLB_TRACKING_NOT_DONE';
  }
  remove(gfn: number, level: number): string {
    return this.#call('TDH.MEM.PAGE.REMOVE', () => {
      if (this.#busy(gfn)) return BUSY;
      if (!this.#valid(gfn, level, 3)) return 'TDX_OPERAND_INVALID';
      if (this.state === 'teardown') return 'TDX_OP_STATE_INCORRECT';
      const leaf = this.sept[gfn];
      if (!leaf) return this.#reaches(gfn) > level ? WALK : STATE;
      if (leaf.level !== level) return STATE;
      const may = this.#blockedAndTracked(leaf.blocked);
      if (may === OK) for (let page = gfn; page < gfn + pagesOf(level); page++) this.sept[page] = null;
      return may;
    });
  }
  demote(gfn: number, level: number): string {
    return this.#call('TDH.MEM.PAGE.DEMOTE', () => {
      if (this.#busy(gfn)) return BUSY;
      if (level < 2 || !this.#valid(gfn, level, 3)) return 'TDX_OPERAND_INVALID';
      if (this.state === 'teardown') return 'TDX_OP_STATE_INCORRECT';
      const leaf = this.sept[gfn];
      if (!leaf || leaf.level !== level) return STATE;
      const may = this.#blockedAndTracked(leaf.blocked);
      if (may !== OK) return may;
      for (let page = gfn; page < gfn + REGION; page++) {
        this.sept[page] = { gfn: page, level: 1, pending: leaf.pending, blocked: null };
      }
      this.septTables.k4[gfn / REGION] = true;
      return OK;
    });
  }
  promote(gfn: number, level: number): string {
    return this.#call('TDH.MEM.PAGE.PROMOTE', () => {
      if (this.#exclusive || this.#shared) return BUSY;
      if (level < 2 || !this.#valid(gfn, level, 3)) return 'TDX_OPERAND_INVALID';
      if (this.state === 'teardown') return 'TDX_OP_STATE_INCORRECT';
      const reached = this.#reaches(gfn);
      if (reached >= level) return reached > level ? WALK : STATE;
      const may = this.#blockedAndTracked(this.blockedTables.get(`${level} ${gfn}`));
      if (may !== OK) return may;
      if (level === 3) return STATE; // The guest is smaller than 1 GiB.
      const leafs = this.sept.slice(gfn, gfn + REGION);
      const [first] = leafs;
      const alike = leafs.every(
        (leaf) => leaf?.level === 1 && leaf.blocked === null && leaf.pending === first?.pending,
      );
      if (leafs.length < REGION || !alike || !first) return STATE;
      this.blockedTables.delete(`${level} ${gfn}`);
      const huge: SeptLeaf = { gfn, level: 2, pending: first.pending, blocked: null };
      for (let page = gfn; page < gfn + REGION; page++) this.sept[page] = huge;
      this.septTables.k4[gfn / REGION] = false;
      return OK;
    });
  }
  acceptPage(gfn: number, level: number): string {
    const status = this.#call('TDG.MEM.PAGE.ACCEPT', () => {
      if (!this.#valid(gfn, level, 2)) return 'TDX_OPERAND_INVALID';
      if (this.#busy(gfn)) return BUSY;
      if (this.#underBlocked(gfn)) return 'EPT_VIOLATION';
      const leaf = this.sept[gfn];
      if (this.#reaches(gfn) < level) return 'TDX_PAGE_SIZE_MISMATCH';
      if (!leaf || leaf.blocked !== null) return 'EPT_VIOLATION';
      if (!leaf.pending) return 'TDX_PAGE_ALREADY_ACCEPTED';
      if (leaf.level > level) return 'EPT_VIOLATION';
      leaf.pending = false;
      return OK;
    });
    if (status !== OK) return status;
    this.#count('pages_accepted', pagesOf(level));
    for (let page = gfn; page < gfn + pagesOf(level); page++) {
      if (!this.hasSlot || !this.resident[page]) continue;
      this.written[page] = true;
      this.touched[page] = true;
    }
    return status;
  }

  // --- vCPUs in and out ------------------------------------------------------------------------------------------------

  /** Whether the vCPU is inside now. */
  #enter(vcpu: ModelVcpu): boolean {
    if (this.state !== 'runnable') throw new Refused('EINVAL');
    if (vcpu.inTd) return true;
    if (this.waiting) return false;
    const status = this.#call('TDH.VP.ENTER', () => {
      const locked = this.#exclusive || this.#shared;
      if ((vcpu.faults >= ZERO_STEP_THRESHOLD || vcpu.entering) && locked) return BUSY;
      if (vcpu.epoch !== this.epoch) this.#count('td_tlb_flushes');
      vcpu.epoch = this.epoch;
      vcpu.inTd = true;
      return OK;
    });
    return status === OK;
  }
  #exit(vcpu: ModelVcpu): void {
    if (vcpu.accept !== null) this.#endAccept(vcpu);
    if (vcpu.entering) {
      vcpu.entering = false;
      vcpu.faults = 0;
    }
    vcpu.inTd = false;
  }
  #endAccept(vcpu: ModelVcpu): string {
    const { gfn, level } = vcpu.accept as { gfn: number; level: number };
    vcpu.accept = null;
    return this.acceptPage(gfn, level);
  }
  /** Out of KVM_RUN, or back to guest code. */
  #leave(vcpu: ModelVcpu): void {
    if (!vcpu.inGuest) this.#exit(vcpu);
    else if (!this.dead) this.#enter(vcpu);
  }
  #allOut(): void {
    for (const vcpu of this.vcpus) this.#exit(vcpu);
  }
  #kick(): void {
    if (this.dead) this.#allOut();
    this.#count('kicks');
    for (const vcpu of this.vcpus) {
      if (!vcpu.inTd && !vcpu.entering) continue;
      this.#count('kick_ipis');
      this.#exit(vcpu);
    }
    if (!this.waiting) this.#comeBack();
  }
  #comeBack(): void {
    if (this.dead) return;
    for (const vcpu of this.vcpus) if (vcpu.inGuest && !vcpu.inTd && vcpu !== this.#faulting) this.#enter(vcpu);
  }
  #bug(): void {
    this.dead = true;
    this.diverged = true;
  }
  /** Once more with all vCPUs out, if the first call was busy. */
  #withoutVcpus(call: () => string): string {
    const first = call();
    if (first !== BUSY) return first;
    this.#count('retries_busy');
    this.waiting = true;
    this.#kick();
    const second = call();
    this.waiting = false;
    this.#comeBack();
    return second;
  }

  // --- Removing --------------------------------------------------------------------------------------------------------

  #track(): void {
    if (this.state !== 'runnable') return;
    if (this.#withoutVcpus(() => this.trackOnce()) !== OK) this.#bug();
    this.#kick();
  }
  #lose(pages: number): void {
    this.#count('private_pages_lost', pages);
    this.#count('private_pages_to_accept', pages);
  }
  #drop(gfn: number, level: number): void {
    const wasMapped = this.sept[gfn]?.pending === false;
    if (this.#withoutVcpus(() => this.remove(gfn, level)) !== OK) {
      this.#bug();
      return;
    }
    if (wasMapped) this.#lose(pagesOf(level));
    let failed = 0;
    for (let page = gfn; page < gfn + pagesOf(level); page++) {
      if (this.#call('TDH.PHYMEM.PAGE.WBINVD', () => OK) !== OK) failed++;
    }
    if (failed > 0) this.#bug();
    else this.#count('pages_cleared', pagesOf(level));
    for (let page = gfn; page < gfn + pagesOf(level); page++) {
      if (!this.hasSlot) continue;
      this.written[page] = false;
      if (failed === 0) this.owned[page] = false;
    }
  }
  /** Was mapped, and its PAGE.ADD never came: BLOCK finds nothing, which KVM expects. */
  #isPremapped(gfn: number): boolean {
    if (this.premapped === 0 || this.sept[gfn]) return false;
    if (this.block(gfn, 1) === STATE) this.premapped--;
    return true;
  }
  /** The mirror leaves of [start, end) go, and their pages with them. */
  #zap(start: number, end: number): void {
    const leafs: MirrorLeaf[] = [];
    for (let gfn = start; gfn < end; gfn++) {
      const leaf = this.mirror[gfn];
      if (leaf && !leafs.includes(leaf)) leafs.push(leaf);
    }
    for (const { gfn, level } of leafs) {
      const last = gfn + pagesOf(level);
      this.#count('gfns_zapped_outside_request', Math.max(start - gfn, 0) + Math.max(last - end, 0));
      for (let page = gfn; page < last; page++) this.mirror[page] = null;
    }
    if (leafs.length === 0) return;
    if (this.dead) this.#allOut();
    if (this.config.track === 'batched' && !this.diverged) {
      const added = leafs.filter(({ gfn }) => !this.#isPremapped(gfn));
      for (const { gfn, level } of added) {
        if (this.#withoutVcpus(() => this.block(gfn, level)) !== OK) this.#bug();
      }
      if (added.length > 0 || leafs.length > 0) this.#track();
      for (const { gfn, level } of added) this.#drop(gfn, level);
      return;
    }
    for (const { gfn, level } of leafs) {
      if (this.#isPremapped(gfn)) continue;
      if (this.#withoutVcpus(() => this.block(gfn, level)) !== OK) {
        this.#bug();
        continue;
      }
      this.#track();
      this.#drop(gfn, level);
    }
  }
  /** A private 2M leaf becomes 512 of 4K. Returns false if the module failed. */
  #split(gfn: number): boolean {
    if (this.#withoutVcpus(() => this.block(gfn, 2)) !== OK) {
      this.#bug();
      return false;
    }
    this.#track();
    let status = this.#withoutVcpus(() => this.demote(gfn, 2));
    for (let again = 0; status === 'TDX_INTERRUPTED_RESTARTABLE' && again < 8; again++) {
      status = this.#withoutVcpus(() => this.demote(gfn, 2));
    }
    if (status !== OK) {
      this.#bug();
      return false;
    }
    for (let page = gfn; page < gfn + REGION; page++) this.mirror[page] = { gfn: page, level: 1 };
    this.mirrorTables.k4[gfn / REGION] = true;
    return true;
  }
  /** What a conversion or a hole does before it zaps [start, end). */
  #splitFirst(start: number, end: number): boolean {
    const { zap } = this.config;
    if (zap === 'whole-leaf' || !this.config.hugePages) return true;
    const at = new Set<number>();
    for (let gfn = start; gfn < end; gfn++) {
      const leaf = this.mirror[gfn];
      if (leaf?.level !== 2) continue;
      const isCut = leaf.gfn < start || leaf.gfn + REGION > end;
      if (zap === 'split-first' || isCut) at.add(leaf.gfn);
    }
    return [...at].every((gfn) => this.#split(gfn));
  }

  // --- Faults ----------------------------------------------------------------------------------------------------------

  #hugeFits(gfn: number): boolean {
    const region = Math.floor(gfn / REGION);
    const base = region * REGION;
    if (this.inhibited[region] || base + REGION > this.config.npages || !this.isFolio[region]) return false;
    return this.isPrivate.slice(base, base + REGION).every(Boolean);
  }
  #allocate(page: number): void {
    if (this.resident[page]) return;
    const region = Math.floor(page / REGION);
    const base = region * REGION;
    const isWhole = this.config.folios && base + REGION <= this.config.npages;
    // A folio comes whole, where nothing is in its way.
    this.isFolio[region] = isWhole && !this.resident.slice(base, base + REGION).includes(true);
    const [first, last] = this.isFolio[region] ? [base, base + REGION] : [page, page + 1];
    this.resident.fill(true, first, last);
    this.#count('gmem_pages_allocated', last - first);
  }
  /** A private fault at `gfn`; `accept` is the level of the ACCEPT that it came from, 0 if from none. */
  #fault(gfn: number, accept: number): Fault {
    if (!this.isPrivate[gfn] || !this.hasSlot) return 'EFAULT';
    const region = Math.floor(gfn / REGION);
    const base = region * REGION;
    this.#allocate(gfn);
    if (accept === 1 && this.config.hugePages) this.inhibited[region] = true;
    const leaf = this.mirror[gfn];
    if (leaf) {
      if (leaf.level === 2 && accept === 1) return this.#split(leaf.gfn) ? 'fixed' : 'EIO';
      return 'spurious';
    }
    const isHuge = this.config.hugePages && this.state === 'runnable' && accept !== 1 && !this.mirrorTables.k4[region];
    const level = isHuge && this.#hugeFits(gfn) ? 2 : 1;
    for (const linked of [4, 3, 2]) {
      if (linked <= level) break;
      const tables = this.mirrorTables;
      if (linked === 4 ? tables.g1 : linked === 3 ? tables.m2 : tables.k4[region]) continue;
      const status = this.septAdd(linked === 2 ? base : 0, linked);
      if (status !== OK) return this.#failed(status);
      if (linked === 4) tables.g1 = true;
      else if (linked === 3) tables.m2 = true;
      else tables.k4[region] = true;
    }
    const first = level === 2 ? base : gfn;
    if (this.state === 'build') this.premapped++;
    else {
      const status = this.aug(first, level);
      if (status !== OK) return this.#failed(status);
    }
    const mapped: MirrorLeaf = { gfn: first, level };
    for (let page = first; page < first + pagesOf(level); page++) this.mirror[page] = mapped;
    return 'fixed';
  }
  #faultOf(vcpu: ModelVcpu, gfn: number, accept: number): Fault {
    this.#faulting = vcpu;
    const result = this.#fault(gfn, accept);
    this.#faulting = null;
    return result;
  }
  #failed(status: string): Fault {
    if (status === BUSY) {
      this.#count('retries_busy');
      return 'retry';
    }
    this.#bug();
    return 'EIO';
  }

  // --- What the guest does ---------------------------------------------------------------------------------------------

  /** Touches `count` private gfns from `gfn` on. Returns how it ended, and where. */
  access(index: number, gfn: number, count: number, write: boolean): { reason: string; done: number } {
    const vcpu = this.vcpus[index];
    let done = 0;
    let reason = 'done';
    while (done < count && reason === 'done') {
      // A run of accesses enters once more before it begins.
      if (count - done > 1 && this.state === 'runnable') this.#enter(vcpu);
      reason = this.#accessOnce(vcpu, gfn + done, write);
      if (reason === 'done') done++;
    }
    this.#leave(vcpu);
    return { reason, done };
  }
  #accessOnce(vcpu: ModelVcpu, gfn: number, write: boolean): string {
    let inKvm = false;
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      if (!inKvm && !this.#enter(vcpu)) continue;
      const leaf = this.#underBlocked(gfn) ? null : this.sept[gfn];
      if (!inKvm && leaf && leaf.blocked === null) {
        vcpu.faults = 0;
        if (leaf.pending) return 've';
        if (write && this.hasSlot && this.resident[gfn]) {
          this.written[gfn] = true;
          this.touched[gfn] = true;
        }
        return 'done';
      }
      this.#exit(vcpu);
      if (!inKvm) vcpu.faults++;
      const result = this.#faultOf(vcpu, gfn, 0);
      inKvm = result === 'retry' && this.config.localRetry;
      if (result === 'EFAULT') return 'memory_fault';
      if (result === 'EIO') return 'error';
    }
    return 'retry';
  }
  /** Returns how many pages were PENDING. */
  accept(index: number, start: number, end: number, maxLevel: number): number {
    const vcpu = this.vcpus[index];
    this.#enter(vcpu);
    let accepted = 0;
    try {
      for (let gfn = start; gfn < end; ) {
        let level = maxLevel === 2 && gfn % REGION === 0 && gfn + REGION <= end ? 2 : 1;
        let done = 0;
        for (let attempt = 0; done === 0; attempt++) {
          if (attempt === ATTEMPTS) throw new Refused('EBUSY');
          if (!this.#enter(vcpu)) continue;
          const status = this.acceptPage(gfn, level);
          if (status === OK || status === 'TDX_PAGE_ALREADY_ACCEPTED') {
            done = pagesOf(level);
            if (status === OK) accepted += done;
          } else if (status === 'TDX_PAGE_SIZE_MISMATCH') {
            level = 1;
          } else if (status === 'EPT_VIOLATION') {
            this.#exit(vcpu);
            vcpu.faults++;
            let result: Fault = 'retry';
            const tries = this.config.localRetry ? ATTEMPTS : 1;
            for (let tried = 0; tried < tries && result === 'retry'; tried++) result = this.#faultOf(vcpu, gfn, level);
            if (result === 'EFAULT' || result === 'EIO') throw new Refused(result);
            this.#enter(vcpu);
          } else if (status !== BUSY) {
            throw new Refused('EIO');
          }
        }
        vcpu.faults = 0;
        gfn += done;
      }
    } finally {
      this.#leave(vcpu);
    }
    return accepted;
  }
  setInGuest(index: number, on: boolean): void {
    const vcpu = this.vcpus[index];
    if (on) {
      if (!this.#enter(vcpu)) throw new Refused('EBUSY');
    } else this.#exit(vcpu);
    vcpu.inGuest = on;
  }
  beginAccept(index: number, gfn: number, level: number): void {
    const vcpu = this.vcpus[index];
    if (gfn % pagesOf(level) !== 0) throw new Refused('EINVAL');
    if (vcpu.accept !== null) throw new Refused('EBUSY');
    if (!this.#enter(vcpu)) throw new Refused('EBUSY');
    if (this.#exclusive) throw new Refused('EBUSY');
    vcpu.accept = { gfn, level };
  }
  finishAccept(index: number): string {
    const vcpu = this.vcpus[index];
    if (vcpu.accept === null) throw new Refused('EINVAL');
    const status = this.#endAccept(vcpu);
    this.#leave(vcpu);
    return status;
  }
  beginEnter(index: number): boolean {
    const vcpu = this.vcpus[index];
    if (vcpu.entering || vcpu.inTd) throw new Refused('EBUSY');
    if (vcpu.faults < ZERO_STEP_THRESHOLD) {
      if (!this.#enter(vcpu)) throw new Refused('EBUSY');
      vcpu.inGuest = true;
      return false;
    }
    if (this.#exclusive || this.#shared) throw new Refused('EBUSY');
    vcpu.entering = true;
    return true;
  }
  finishEnter(index: number): void {
    const vcpu = this.vcpus[index];
    if (!vcpu.entering) throw new Refused('EINVAL');
    vcpu.entering = false;
    vcpu.faults = 0;
    if (!this.#enter(vcpu)) throw new Refused('EBUSY');
    vcpu.inGuest = true;
  }

  // --- What the VMM does -----------------------------------------------------------------------------------------------

  convert(start: number, end: number, toPrivate: boolean): void {
    if (this.isPrivate.slice(start, end).every((one) => one === toPrivate)) return;
    if (!toPrivate && this.hasSlot) {
      if (!this.#splitFirst(start, end)) throw new Refused('EIO');
      this.#zap(start, end);
    }
    this.isPrivate.fill(toPrivate, start, end);
  }
  punch(start: number, end: number): void {
    if (this.hasSlot) {
      if (!this.#splitFirst(start, end)) throw new Refused('EIO');
      this.#zap(start, end);
    }
    this.#truncate(start, end);
  }
  #truncate(start: number, end: number): void {
    for (let page = start; page < end; page++) {
      if (!this.resident[page]) continue;
      this.#count('gmem_pages_freed');
      if (this.written[page]) this.#count('private_pages_lost');
      if (this.owned[page]) this.#count('pages_leaked');
      this.resident[page] = false;
      this.isFolio[Math.floor(page / REGION)] = false;
      this.written[page] = false;
      this.touched[page] = false;
      this.owned[page] = false;
    }
  }
  allocate(start: number, end: number): void {
    for (let page = start; page < end; page++) this.#allocate(page);
  }
  deleteSlot(): void {
    if (!this.hasSlot) throw new Refused('EINVAL');
    this.#zap(0, this.config.npages);
    this.hasSlot = false;
  }
  createSlot(): void {
    if (this.hasSlot) throw new Refused('EINVAL');
    this.hasSlot = true;
  }
  /** Returns the gfns left over. */
  preFault(start: number, end: number): number {
    if (this.state !== 'runnable') throw new Refused('EOPNOTSUPP');
    let gfn = start;
    while (gfn < end) {
      // A shared gfn is mapped in the other tree, which is no matter here.
      if (!this.isPrivate[gfn] && this.hasSlot) {
        gfn++;
        continue;
      }
      if (!this.isPrivate[gfn]) {
        if (gfn === start) throw new Refused('ENOENT');
        break;
      }
      let result: Fault = 'retry';
      for (let attempt = 0; attempt < PRE_FAULT_ATTEMPTS && result === 'retry'; attempt++) result = this.#fault(gfn, 0);
      if (result === 'retry' || result === 'EFAULT' || result === 'EIO') {
        if (gfn === start) throw new Refused(result === 'retry' ? 'EINTR' : result);
        break;
      }
      const level = this.mirror[gfn]?.level ?? 1;
      gfn = Math.min(end, Math.floor(gfn / pagesOf(level)) * pagesOf(level) + pagesOf(level));
    }
    return end - gfn;
  }
  /** KVM_TDX_INIT_MEM_REGION. Returns the gfn at which it stopped with an errno, or `end`. */
  initMemRegion(start: number, end: number): { gfn: number; errno: string | null } {
    if (this.state !== 'build') return { gfn: start, errno: 'EINVAL' };
    for (let gfn = start; gfn < end; gfn++) {
      if (!this.hasSlot || !this.isPrivate[gfn]) return { gfn, errno: 'EINVAL' };
      if (this.touched[gfn] || this.owned[gfn]) return { gfn, errno: 'EEXIST' };
      const result = this.#fault(gfn, 0);
      if (result === 'retry') return { gfn, errno: 'EBUSY' };
      if (result === 'EFAULT' || result === 'EIO') return { gfn, errno: result };
      const status = this.pageAdd(gfn, 1);
      if (status !== OK) return { gfn, errno: status === BUSY ? 'EBUSY' : 'EIO' };
      this.premapped--;
      this.written[gfn] = true;
      this.touched[gfn] = true;
    }
    return { gfn: end, errno: null };
  }
  finalize(): void {
    if (this.state !== 'build' || this.premapped !== 0) throw new Refused('EINVAL');
    this.#call('TDH.MR.FINALIZE', () => OK);
    this.state = 'runnable';
  }
  /** A call past KVM. */
  direct(leaf: string, gfn: number, level: number): string {
    const calls: Record<string, () => string> = {
      'TDH.MEM.SEPT.ADD': () => this.septAdd(gfn, level),
      'TDH.MEM.PAGE.ADD': () => this.pageAdd(gfn, level),
      'TDH.MEM.PAGE.AUG': () => this.aug(gfn, level),
      'TDH.MEM.RANGE.BLOCK': () => this.block(gfn, level),
      'TDH.MEM.TRACK': () => this.trackOnce(),
      'TDH.MEM.PAGE.REMOVE': () => this.remove(gfn, level),
      'TDH.MEM.PAGE.DEMOTE': () => this.demote(gfn, level),
      'TDH.MEM.PAGE.PROMOTE': () => this.promote(gfn, level),
      'TDG.MEM.PAGE.ACCEPT': () => this.acceptPage(gfn, level),
    };
    const wasMapped = this.sept[gfn]?.pending === false;
    const status = calls[leaf]();
    if (status !== OK || leaf === 'TDH.MEM.TRACK' || leaf === 'TDG.MEM.PAGE.ACCEPT') return status;
    this.diverged = true;
    if (leaf !== 'TDH.MEM.PAGE.REMOVE') return status;
    if (wasMapped) this.#lose(pagesOf(level));
    for (let page = gfn; page < gfn + pagesOf(level); page++) {
      if (!this.hasSlot) continue;
      this.written[page] = false;
      this.owned[page] = false;
    }
    return status;
  }

  /** The last close of the file, then of the VM. */
  end(): void {
    if (this.hasSlot) this.#zap(0, this.config.npages);
    this.hasSlot = false;
    this.#truncate(0, this.config.npages);
    this.#allOut();
    this.state = 'teardown';
    this.sept.fill(null);
    const { g1, m2, k4 } = this.mirrorTables;
    const tables = [g1, m2, ...k4].filter(Boolean).length;
    this.#count('TDH.PHYMEM.PAGE.RECLAIM', tables);
    this.#count('pages_cleared', tables);
    this.#count('TDH.VP.FLUSH', this.config.vcpus);
    for (const leaf of ['TDH.MNG.VPFLUSHDONE', 'TDH.PHYMEM.CACHE.WB', 'TDH.MNG.KEY.FREEID']) this.#count(leaf);
  }

  // --- What can be seen ------------------------------------------------------------------------------------------------

  /** What the S-EPT says of `gfn`. */
  stateOf(gfn: number): string {
    const leaf = this.sept[gfn];
    if (!leaf) return 'FREE';
    const blocked = leaf.blocked !== null;
    return `${leaf.pending ? `PENDING${blocked ? '_BLOCKED' : ''}` : blocked ? 'BLOCKED' : 'MAPPED'} L${leaf.level}`;
  }
  /** The gfns at which mirror and S-EPT disagree. */
  disagreements(): number[] {
    return this.mirror.flatMap((mirror, gfn) => {
      const sept = this.sept[gfn];
      if (!mirror) return sept ? [gfn] : [];
      if (!sept) return this.premapped > 0 ? [] : [gfn];
      return sept.level === mirror.level && sept.blocked === null ? [] : [gfn];
    });
  }
}
