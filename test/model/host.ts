// The VMM's address space as KVM sees it: what backs a page, at which level, writable or not, and which notifier ranges
// each system call fires. Kept per page, in maps.
//
// Page numbers are hva / 4096; a "2M index" is a page number / 512.
// Mirrors: the behaviour of mm/memory.c, huge_memory.c, madvise.c, mprotect.c and mremap.c that KVM can observe.
// Left out: reference counts, swap, NUMA, file writeback, KSM state.

const PAGE = 4096;
const HUGE = 512;
const GIGA = 512 * 512;

export type RegionKind = 'anon' | 'anon4k' | 'thp' | 'hugetlb2m' | 'hugetlb1g' | 'shmem';

export interface Vma {
  start: number;
  end: number;
  kind: RegionKind;
  prot: number;
  thp: boolean;
  nohp: boolean;
  /** anon_vma identity, 0 = none. */
  av: number;
  /** The file (0 = anonymous) and the page offset that `start` maps: for anonymous memory the address it was made at. */
  file: number;
  filePage: number;
}

type Pmd = { kind: 'zero' } | { kind: 'huge'; writable: boolean; pfn: number } | { kind: 'table' };
type Pte =
  | { kind: 'zero' }
  | { kind: 'anon'; writable: boolean; pfn: number; folio: number }
  | { kind: 'shmem'; writable: boolean; pfn: number };

export interface HostMapping {
  level: 1 | 2 | 3;
  writable: boolean;
  pfn: number;
}

/** What the host tells KVM. */
export interface Notifier {
  start(startPage: number, endPage: number): void;
  end(startPage: number, endPage: number): void;
  age(startPage: number, endPage: number): boolean;
}

const ZERO_PFN = 1;
const HUGE_ZERO_PFN = 512;

const isHugetlb = (kind: RegionKind): boolean => kind === 'hugetlb2m' || kind === 'hugetlb1g';
const hugetlbPages = (kind: RegionKind): number => (kind === 'hugetlb1g' ? GIGA : HUGE);
const down = (page: number, unit: number): number => Math.floor(page / unit) * unit;
const up = (page: number, unit: number): number => Math.ceil(page / unit) * unit;

export class HostError extends Error {
  readonly code: string;

  constructor(code: string) {
    super(code);
    this.code = code;
  }
}

/** are_anon_vmas_compatible() */
const areCompatible = (a: number, b: number): boolean => a === b || a === 0 || b === 0;

export class Host {
  vmas: Vma[] = [];
  private readonly touchedGiga = new Set<number>();
  private readonly pmds = new Map<number, Pmd>();
  private readonly ptes = new Map<number, Pte>();
  private readonly hugetlb = new Map<number, { writable: boolean; pfn: number }>();
  private readonly files = new Map<string, number>();
  private nextAnonVma = 1;
  private nextFile = 1;
  private nextPfn = GIGA;

  private readonly notifier: Notifier;

  /** Whether an area without an anon_vma takes one that has one into itself: since 6.15. */
  private readonly takesFaulted: boolean;

  constructor(notifier: Notifier, takesFaulted: boolean) {
    this.notifier = notifier;
    this.takesFaulted = takesFaulted;
  }

  /** is_mergeable_anon_vma() */
  private takes(neighbour: Vma, av: number): boolean {
    return neighbour.av === av || av === 0 || (neighbour.av === 0 && this.takesFaulted);
  }

  private allocate(npages: number): number {
    this.nextPfn = up(this.nextPfn, npages);
    const pfn = this.nextPfn;
    this.nextPfn += npages;
    return pfn;
  }
  private event(startPage: number, endPage: number): void {
    this.notifier.start(startPage, endPage);
    this.notifier.end(startPage, endPage);
  }
  vmaOf(page: number): Vma | undefined {
    return this.vmas.find((vma) => vma.start <= page && page < vma.end);
  }
  private parts(start: number, end: number): Vma[] {
    return this.vmas.filter((vma) => vma.start < end && start < vma.end);
  }
  private hasHole(start: number, end: number): boolean {
    let at = start;
    for (const vma of this.parts(start, end)) {
      if (vma.start > at) return true;
      at = vma.end;
    }
    return at < end;
  }

  mmap(kind: RegionKind, start: number, npages: number, prot = 3): void {
    const unit = isHugetlb(kind) ? hugetlbPages(kind) : 1;
    if (start % unit !== 0) throw new HostError('EINVAL');
    const end = start + up(npages, unit);
    this.munmap(start, end);
    const vma: Vma = {
      start,
      end,
      // Anonymous memory differs in what was advised, not in kind.
      kind: kind === 'thp' || kind === 'anon4k' ? 'anon' : kind,
      prot,
      thp: kind === 'thp',
      nohp: kind === 'anon4k',
      av: 0,
      file: kind === 'shmem' ? this.nextFile++ : 0,
      filePage: kind === 'shmem' ? 0 : start,
    };
    this.vmas.push(vma);
    this.vmas.sort((a, b) => a.start - b.start);
    this.mergeNew(vma);
  }

  /** Joins the new `vma` with the neighbours that differ from it in nothing. */
  private mergeNew(vma: Vma): void {
    const isAlike = (other: Vma | undefined): boolean =>
      other !== undefined &&
      !isHugetlb(vma.kind) &&
      other.kind === vma.kind &&
      other.file === vma.file &&
      other.prot === vma.prot &&
      other.thp === vma.thp &&
      other.nohp === vma.nohp &&
      other.filePage - other.start === vma.filePage - vma.start &&
      this.takes(other, vma.av);
    const before = this.vmas.find((other) => other.end === vma.start);
    const after = this.vmas.find((other) => other.start === vma.end);
    const joins = { before: isAlike(before), after: isAlike(after) };
    if (joins.before && joins.after && !areCompatible(before?.av ?? 0, after?.av ?? 0)) joins.after = false;
    if (joins.after && after) {
      vma.end = after.end;
      vma.av ||= after.av;
      this.vmas.splice(this.vmas.indexOf(after), 1);
    }
    if (joins.before && before) {
      before.end = vma.end;
      before.av ||= vma.av;
      this.vmas.splice(this.vmas.indexOf(vma), 1);
    }
  }

  /** The level and permission of a present translation, as the page-table walk of host_pfn_mapping_level() finds it. */
  lookup(page: number): HostMapping | undefined {
    const vma = this.vmaOf(page);
    if (!vma) return undefined;
    if (isHugetlb(vma.kind)) {
      const unit = hugetlbPages(vma.kind);
      const huge = this.hugetlb.get(down(page, unit));
      return (
        huge && { level: unit === GIGA ? 3 : 2, writable: huge.writable, pfn: huge.pfn + (page - down(page, unit)) }
      );
    }
    const pmd = this.pmds.get(down(page, HUGE));
    if (!pmd) return undefined;
    const offset = page % HUGE;
    if (pmd.kind === 'zero') return { level: 2, writable: false, pfn: HUGE_ZERO_PFN + offset };
    if (pmd.kind === 'huge') return { level: 2, writable: pmd.writable, pfn: pmd.pfn + offset };
    const pte = this.ptes.get(page);
    if (!pte) return undefined;
    return pte.kind === 'zero'
      ? { level: 1, writable: false, pfn: ZERO_PFN }
      : { level: 1, writable: pte.writable, pfn: pte.pfn };
  }

  private isThpEligible(vma: Vma, page: number): boolean {
    const start = down(page, HUGE);
    return vma.kind !== 'shmem' && vma.thp && start >= vma.start && start + HUGE <= vma.end;
  }

  private needAnonVma(vma: Vma): void {
    if (vma.av !== 0 || vma.kind === 'shmem' || isHugetlb(vma.kind)) return;
    const like = (other: Vma | undefined): other is Vma =>
      other !== undefined &&
      other.av !== 0 &&
      other.kind === vma.kind &&
      other.thp === vma.thp &&
      other.nohp === vma.nohp;
    const index = this.vmas.indexOf(vma);
    const after = this.vmas[index + 1];
    const before = this.vmas[index - 1];
    if (like(after) && after.start === vma.end) vma.av = after.av;
    else if (like(before) && before.end === vma.start) vma.av = before.av;
    else vma.av = this.nextAnonVma++;
  }

  /** Faults one page in. Returns undefined for EFAULT. May fire the notifier (a COW break). */
  fault(page: number, write: boolean): HostMapping | undefined {
    const vma = this.vmaOf(page);
    if (!vma || vma.prot === 0 || (write && (vma.prot & 2) === 0)) return undefined;
    this.touchedGiga.add(down(page, GIGA));
    if (isHugetlb(vma.kind)) {
      const unit = hugetlbPages(vma.kind);
      const at = down(page, unit);
      const huge = this.hugetlb.get(at);
      if (!huge) this.hugetlb.set(at, { writable: write, pfn: this.allocate(unit) });
      else if (write) huge.writable = true;
      return this.lookup(page);
    }
    const at = down(page, HUGE);
    let pmd = this.pmds.get(at);
    if (vma.kind === 'shmem') {
      this.pmds.set(at, pmd ?? { kind: 'table' });
      const pte = this.ptes.get(page);
      if (pte?.kind === 'shmem') {
        if (write) pte.writable = true;
      } else if (!pte && pmd?.kind !== 'huge') {
        const key = `${vma.file}:${vma.filePage + page - vma.start}`;
        let pfn = this.files.get(key);
        if (pfn === undefined) {
          pfn = this.allocate(1);
          this.files.set(key, pfn);
        }
        this.ptes.set(page, { kind: 'shmem', writable: write || (vma.prot & 2) !== 0, pfn });
      }
      return this.lookup(page);
    }
    if (!pmd && this.isThpEligible(vma, page)) {
      this.needAnonVma(vma);
      this.pmds.set(at, write ? { kind: 'huge', writable: true, pfn: this.allocate(HUGE) } : { kind: 'zero' });
      return this.lookup(page);
    }
    if (pmd?.kind === 'huge') {
      if (write) pmd.writable = true;
      return this.lookup(page);
    }
    if (pmd?.kind === 'zero') {
      if (!write) return this.lookup(page);
      this.event(at, at + HUGE);
      for (let i = 0; i < HUGE; i++) this.ptes.set(at + i, { kind: 'zero' });
      pmd = { kind: 'table' };
      this.pmds.set(at, pmd);
    }
    if (!pmd) this.pmds.set(at, { kind: 'table' });
    const pte = this.ptes.get(page);
    if (write) this.needAnonVma(vma);
    if (!pte) {
      this.ptes.set(page, write ? { kind: 'anon', writable: true, pfn: this.allocate(1), folio: 0 } : { kind: 'zero' });
    } else if (pte.kind === 'zero' && write) {
      this.event(page, page + 1);
      this.ptes.set(page, { kind: 'anon', writable: true, pfn: this.allocate(1), folio: 0 });
    } else if (pte.kind === 'anon' && write) pte.writable = true;
    return this.lookup(page);
  }

  private splitHuge(at: number): void {
    const pmd = this.pmds.get(at);
    if (!pmd || pmd.kind === 'table') return;
    this.pmds.set(at, { kind: 'table' });
    for (let i = 0; i < HUGE; i++) {
      this.ptes.set(
        at + i,
        pmd.kind === 'zero'
          ? { kind: 'zero' }
          : { kind: 'anon', writable: pmd.writable, pfn: pmd.pfn + i, folio: pmd.pfn },
      );
    }
  }

  /** A new boundary inside the old `vma`: the 2M around it is split if the VMA held all of it. */
  private boundary(vma: { start: number; end: number; kind: RegionKind }, at: number): void {
    const from = down(at, HUGE);
    if (at === from || from < vma.start || from + HUGE > vma.end || isHugetlb(vma.kind)) return;
    if (!this.touchedGiga.has(down(at, GIGA))) return;
    this.event(from, from + HUGE);
    this.splitHuge(from);
  }

  private split(vma: Vma, at: number): Vma {
    if (isHugetlb(vma.kind) && at % hugetlbPages(vma.kind) !== 0) throw new HostError('EINVAL');
    this.boundary(vma, at);
    const tail: Vma = { ...vma, start: at, filePage: vma.filePage + (at - vma.start) };
    vma.end = at;
    this.vmas.splice(this.vmas.indexOf(vma) + 1, 0, tail);
    return tail;
  }

  /** Gives [start, end) of `vma` new attributes, splitting and merging as vma_modify() does. */
  private modify(vma: Vma, start: number, end: number, change: Partial<Pick<Vma, 'prot' | 'thp' | 'nohp'>>): boolean {
    const wanted = { prot: vma.prot, thp: vma.thp, nohp: vma.nohp, ...change };
    if (wanted.prot === vma.prot && wanted.thp === vma.thp && wanted.nohp === vma.nohp) return false;
    const mergeable = (other: Vma | undefined): boolean =>
      other !== undefined &&
      !isHugetlb(vma.kind) &&
      other.kind === vma.kind &&
      other.prot === wanted.prot &&
      other.thp === wanted.thp &&
      other.nohp === wanted.nohp &&
      other.file === vma.file &&
      this.takes(other, vma.av);
    const index = this.vmas.indexOf(vma);
    const before = this.vmas[index - 1];
    const after = this.vmas[index + 1];
    const contiguous = (a: Vma, b: Vma): boolean => a.filePage + (a.end - a.start) === b.filePage;
    let mergeBefore =
      start === vma.start && before?.end === start && mergeable(before) && contiguous(before as Vma, vma);
    let mergeAfter = end === vma.end && after?.start === end && mergeable(after) && contiguous(vma, after as Vma);
    if (mergeBefore && mergeAfter && !areCompatible(before?.av ?? 0, after?.av ?? 0)) mergeAfter = false;
    if (mergeBefore && before) {
      if (end < vma.end) {
        this.boundary(vma, end);
        before.end = end;
        vma.filePage += end - vma.start;
        vma.start = end;
      } else {
        before.end = mergeAfter && after ? after.end : end;
        this.vmas.splice(index, mergeAfter ? 2 : 1);
      }
      before.av = before.av || vma.av || (mergeAfter ? (after?.av ?? 0) : 0);
      return true;
    }
    mergeBefore = false;
    if (mergeAfter && after) {
      if (start > vma.start) {
        this.boundary(vma, start);
        vma.end = start;
      } else this.vmas.splice(index, 1);
      after.filePage -= after.start - start;
      after.start = start;
      after.av = after.av || vma.av;
      return true;
    }
    let middle = vma;
    if (start > vma.start) middle = this.split(vma, start);
    if (end < middle.end) this.split(middle, end);
    Object.assign(middle, wanted);
    return true;
  }

  private drop(start: number, end: number): void {
    for (const vma of this.parts(start, end)) {
      const a = Math.max(start, vma.start);
      const b = Math.min(end, vma.end);
      if (isHugetlb(vma.kind)) {
        const unit = hugetlbPages(vma.kind);
        for (let page = down(a, unit); page < b; page += unit) if (page >= a) this.hugetlb.delete(page);
        continue;
      }
      for (let page = a; page < b; page++) {
        const at = down(page, HUGE);
        const pmd = this.pmds.get(at);
        if (pmd && pmd.kind !== 'table') this.pmds.delete(at);
        else this.ptes.delete(page);
      }
    }
  }

  /** free_pgtables(): a table of 4K entries goes once no area reaches into its 2M. */
  private freeTables(start: number, end: number): void {
    for (let at = down(start, HUGE); at < end; at += HUGE) {
      if (this.parts(at, at + HUGE).length === 0 && this.pmds.get(at)?.kind === 'table') this.pmds.delete(at);
    }
  }

  munmap(start: number, end: number): void {
    // The split at the start stays where the one at the end fails.
    const first = this.parts(start, end)[0];
    if (first && first.start < start) this.split(first, start);
    const last = this.parts(start, end).at(-1);
    if (last && last.end > end) this.split(last, end);
    if (this.parts(start, end).length > 0) this.event(start, end);
    this.drop(start, end);
    this.vmas = this.vmas.filter((vma) => vma.end <= start || vma.start >= end);
    this.freeTables(start, end);
  }

  /**
   * mremap() to a fixed place: what is there goes, an area is made there, the pages move in one event, the old range goes as
   * by munmap().
   */
  mremap(oldStart: number, wanted: number, newStart: number): void {
    const holder = this.vmaOf(oldStart);
    if (!holder) throw new HostError('EFAULT');
    const unit = isHugetlb(holder.kind) ? hugetlbPages(holder.kind) : 1;
    if (oldStart % unit !== 0 || newStart % unit !== 0) throw new HostError('EINVAL');
    const npages = up(wanted, unit);
    const oldEnd = oldStart + npages;
    const newEnd = newStart + npages;
    if (oldEnd > newStart && newEnd > oldStart) throw new HostError('EINVAL');
    this.munmap(newStart, newEnd);
    // That may have cut the area, not where the range begins.
    const source = this.vmaOf(oldStart) as Vma;
    if (source.end < oldEnd) throw new HostError('EFAULT');
    const filePage = source.filePage + oldStart - source.start;
    const isUntouched = source.av === 0 && source.file === 0;
    const moved = { ...source, start: newStart, end: newEnd, filePage: isUntouched ? newStart : filePage };
    this.vmas.push(moved);
    this.vmas.sort((a, b) => a.start - b.start);
    this.mergeNew(moved);
    // try_realign_addr(): a first table that holds nothing else, here and there, moves whole.
    const isAlone = (page: number): boolean =>
      this.vmaOf(page)?.start === page && this.parts(down(page, HUGE), page).length === 0;
    const isWhole = (newStart - oldStart) % HUGE === 0 && npages >= HUGE - (oldStart % HUGE);
    const from = isWhole && isAlone(oldStart) && isAlone(newStart) ? down(oldStart, HUGE) : oldStart;
    this.notifier.start(from, oldEnd);
    for (let page = oldStart; page < oldEnd; ) {
      if (unit > 1) {
        const huge = this.hugetlb.get(page);
        if (huge) {
          this.hugetlb.set(page - oldStart + newStart, huge);
          this.touchedGiga.add(down(page - oldStart + newStart, GIGA));
        }
        this.hugetlb.delete(page);
        page += unit;
        continue;
      }
      page = this.moveTable(page, oldEnd, newStart - oldStart);
    }
    this.notifier.end(from, oldEnd);
    this.munmap(oldStart, oldEnd);
  }

  /** Moves what one pmd maps of [page, end) by `delta` pages. Returns where the next one begins. */
  private moveTable(page: number, end: number, delta: number): number {
    const at = down(page, HUGE);
    const next = Math.min(at + HUGE, end);
    const pmd = this.pmds.get(at);
    if (!pmd) return next;
    if (pmd.kind !== 'table') {
      if (page === at && next === at + HUGE && delta % HUGE === 0) {
        this.pmds.set(at + delta, pmd);
        this.pmds.delete(at);
        this.touchedGiga.add(down(at + delta, GIGA));
        return next;
      }
      this.event(at, at + HUGE);
      this.splitHuge(at);
    }
    for (let from = page; from < next; from++) {
      const to = from + delta;
      this.touchedGiga.add(down(to, GIGA));
      this.pmds.set(down(to, HUGE), { kind: 'table' });
      const pte = this.ptes.get(from);
      if (!pte) continue;
      // Off its place within 2M, a page of a huge one is taken for a single page.
      this.ptes.set(to, pte.kind === 'anon' && delta % HUGE !== 0 ? { ...pte, folio: 0 } : pte);
      this.ptes.delete(from);
    }
    return next;
  }

  mprotect(start: number, end: number, prot: number): void {
    let done = start;
    for (const vma of this.parts(start, end)) {
      // What lies before a hole is done.
      if (vma.start > done) break;
      const a = Math.max(start, vma.start);
      const b = Math.min(end, vma.end);
      const kind = vma.kind;
      done = b;
      if (!this.modify(vma, a, b, { prot })) continue;
      if (isHugetlb(kind)) this.event(a, b);
      else {
        let first = a;
        while (first < b && !this.touchedGiga.has(down(first, GIGA))) first = down(first, GIGA) + GIGA;
        if (first >= b) continue;
        this.event(first, b);
      }
      const writable = (prot & 2) !== 0;
      for (let page = a; page < b; page++) {
        const huge = isHugetlb(kind) ? this.hugetlb.get(page) : undefined;
        if (huge) huge.writable &&= writable;
        const pmd = this.pmds.get(page);
        if (pmd?.kind === 'huge') pmd.writable = writable;
        const pte = this.ptes.get(page);
        if (pte && pte.kind !== 'zero') pte.writable = writable;
      }
    }
    if (done < end) throw new HostError('ENOMEM');
  }

  dontneed(start: number, end: number): void {
    const parts = this.parts(start, end);
    for (const vma of parts) {
      const a = Math.max(start, vma.start);
      let b = Math.min(end, vma.end);
      if (isHugetlb(vma.kind)) {
        const unit = hugetlbPages(vma.kind);
        if (a % unit !== 0) throw new HostError('EINVAL');
        b = down(b, unit);
      }
      if (a >= b) continue;
      this.notifier.start(a, b);
      for (let at = down(a, HUGE); at < b && !isHugetlb(vma.kind); at += HUGE) {
        const pmd = this.pmds.get(at);
        if (pmd && pmd.kind !== 'table' && (at < a || at + HUGE > b)) {
          this.event(at, at + HUGE);
          this.splitHuge(at);
        }
        this.drop(Math.max(a, at), Math.min(b, at + HUGE));
      }
      if (isHugetlb(vma.kind)) this.drop(a, b);
      this.notifier.end(a, b);
    }
    if (this.hasHole(start, end)) throw new HostError('ENOMEM');
  }

  populate(start: number, end: number, write: boolean): void {
    for (let page = start; page < end; ) {
      const vma = this.vmaOf(page);
      if (!vma) throw new HostError('ENOMEM');
      if (write ? (vma.prot & 2) === 0 : vma.prot === 0) throw new HostError('EINVAL');
      const mapping = this.fault(page, write);
      const unit = mapping?.level === 3 ? GIGA : mapping?.level === 2 ? HUGE : 1;
      page = down(page, unit) + unit;
    }
  }

  remove(start: number, end: number): void {
    for (const vma of this.parts(start, end)) {
      // A private mapping of hugetlbfs has a file, but is not shared.
      if (vma.kind !== 'shmem') throw new HostError(isHugetlb(vma.kind) ? 'EACCES' : 'EINVAL');
      const a = Math.max(start, vma.start);
      const b = Math.min(end, vma.end);
      this.event(a, b);
      this.drop(a, b);
      for (let page = a; page < b; page++) this.files.delete(`${vma.file}:${vma.filePage + page - vma.start}`);
    }
    if (this.hasHole(start, end)) throw new HostError('ENOMEM');
  }

  /** MADV_FREE of anonymous memory: the pages stay, the translations go. */
  free(start: number, end: number): void {
    for (const vma of this.parts(start, end)) {
      if (vma.kind === 'shmem' || isHugetlb(vma.kind)) throw new HostError('EINVAL');
      this.event(Math.max(start, vma.start), Math.min(end, vma.end));
    }
    if (this.hasHole(start, end)) throw new HostError('ENOMEM');
  }

  /** MADV_PAGEOUT: one event per mapped page. */
  pageout(start: number, end: number): void {
    for (let page = start; page < end; page++) {
      const pte = this.ptes.get(page);
      if (pte) this.event(page, page + 1);
    }
  }

  hugepage(start: number, end: number): void {
    for (const vma of this.parts(start, end)) {
      const a = Math.max(start, vma.start);
      const b = Math.min(end, vma.end);
      if (isHugetlb(vma.kind) && !vma.thp) {
        const unit = hugetlbPages(vma.kind);
        if ((a > vma.start && a % unit !== 0) || (b < vma.end && b % unit !== 0)) {
          if (a > vma.start && a % unit === 0) this.split(vma, a);
          throw new HostError('EINVAL');
        }
      }
      this.modify(vma, a, b, { thp: true, nohp: false });
    }
    if (this.hasHole(start, end)) throw new HostError('ENOMEM');
  }

  collapse(start: number, end: number): void {
    for (const vma of this.parts(start, end)) {
      const hasAligned = up(vma.start, HUGE) < down(vma.end, HUGE);
      if (vma.nohp || isHugetlb(vma.kind) || !hasAligned) throw new HostError('EINVAL');
      let failed = false;
      // Memory that nothing was ever written to has no anon_vma.
      if (vma.kind !== 'shmem' && vma.av === 0) throw new HostError('EINVAL');
      const a = up(Math.max(start, vma.start), HUGE);
      const b = down(Math.min(end, vma.end), HUGE);
      if (a > b) throw new HostError('EINVAL');
      for (let at = a; at < b; at += HUGE) {
        const pmd = this.pmds.get(at);
        if (pmd && pmd.kind !== 'table') continue;
        if (pmd && this.collapseOne(at, true)) continue;
        failed = true;
        // SCAN_PMD_NONE ends the call, SCAN_PMD_NULL (not even its table is there) does not.
        if (!pmd && this.touchedGiga.has(down(at, GIGA))) break;
      }
      if (failed) throw new HostError('EINVAL');
    }
    if (this.hasHole(start, end)) throw new HostError('ENOMEM');
  }

  private collapseOne(at: number, needWritable: boolean): boolean {
    let writable = false;
    for (let i = 0; i < HUGE; i++) {
      const pte = this.ptes.get(at + i);
      if (pte && pte.kind !== 'zero' && pte.writable) writable = true;
    }
    if (needWritable && !writable) return false;
    this.event(at, at + HUGE);
    for (let i = 0; i < HUGE; i++) this.ptes.delete(at + i);
    this.pmds.set(at, { kind: 'huge', writable: true, pfn: this.allocate(HUGE) });
    return true;
  }

  /** khugepaged takes each 2M of 4K entries, some of them there, that lies in an area it may work on. */
  khugepaged(start: number, end: number): void {
    for (let at = up(start, HUGE); at + HUGE <= end; at += HUGE) {
      const vma = this.vmaOf(at);
      if (!vma || at + HUGE > vma.end || vma.nohp || isHugetlb(vma.kind)) continue;
      if (this.pmds.get(at)?.kind !== 'table') continue;
      const hasPages = Array.from({ length: HUGE }, (_, i) => this.ptes.has(at + i)).includes(true);
      if (hasPages) this.collapseOne(at, false);
    }
  }

  /** /sys/kernel/mm/page_idle/bitmap for npages from `start`: which notifier ages fire, in which order. */
  pageIdleSet(start: number, npages: number): void {
    for (let page = start; page < start + npages; page++) {
      const at = down(page, HUGE);
      const pmd = this.pmds.get(at);
      if (pmd?.kind === 'huge' && page === at) this.notifier.age(at, at + HUGE);
      if (pmd?.kind !== 'table') continue;
      const pte = this.ptes.get(page);
      if (pte?.kind === 'shmem') this.notifier.age(page, page + 1);
      if (pte?.kind !== 'anon') continue;
      if (pte.folio === 0) this.notifier.age(page, page + 1);
      else if (pte.pfn === pte.folio) {
        for (let i = 0; i < HUGE; i++) {
          const other = this.ptes.get(at + i);
          if (other?.kind === 'anon' && other.folio === pte.folio) this.notifier.age(at + i, at + i + 1);
        }
      }
    }
  }

  /** Reading the bitmap ages each page that is still marked idle, until one was young; the model ages each once. */
  pageIdleRead(start: number, npages: number): void {
    this.pageIdleSet(start, npages);
  }

  /** Pages migrate, huge ones and what was split of them whole: an event each, then a new pfn with the old permission. */
  migrate(start: number, end: number): void {
    for (let page = start; page < end; ) {
      const vma = this.vmaOf(page);
      const unit = vma && isHugetlb(vma.kind) ? hugetlbPages(vma.kind) : HUGE;
      const at = down(page, unit);
      const huge = this.hugetlb.get(at);
      const pmd = this.pmds.get(at);
      const pte = this.ptes.get(page);
      const isFolio = pte?.kind === 'anon' && pte.folio !== 0;
      if (huge) huge.pfn = this.move(at, unit);
      else if (pmd?.kind === 'huge') pmd.pfn = this.move(at, unit);
      else if (isFolio) {
        const pfn = this.move(at, unit);
        const old = pte.folio;
        for (let i = 0; i < HUGE; i++) {
          const other = this.ptes.get(at + i);
          if (other?.kind === 'anon' && other.folio === old)
            Object.assign(other, { pfn: pfn + other.pfn - old, folio: pfn });
        }
      } else if (pte && pte.kind !== 'zero') pte.pfn = this.move(page, 1);
      page = huge || pmd?.kind === 'huge' || isFolio ? at + unit : page + 1;
    }
  }
  private move(at: number, npages: number): number {
    this.event(at, at + npages);
    return this.allocate(npages);
  }

  access(start: number, end: number, write: boolean, step = 1): void {
    for (let page = start; page < end; page += step) if (!this.fault(page, write)) throw new HostError('EFAULT');
  }
}
export const HOST_PAGE = PAGE;
