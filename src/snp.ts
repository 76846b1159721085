// What an SNP guest and its KVM say to each other beside faults: page-state changes, PVALIDATE, RMP entries and faults.
//
// Types, and their form at the boundary. The state is in the engine (assembly/rmp.ts, sev.ts, pvalidate.ts).

import { halvesOf, integer, object, oneOf, type U64 } from './errors.ts';

export const PAGE_SIZES = ['4K', '2M'] as const;
export type PageSize = (typeof PAGE_SIZES)[number];

/** One page of a guest_memfd in the RMP. A page that is not assigned is the host's, and has no more to say. */
export type RmpEntry =
  | { assigned: false }
  | {
      assigned: true;
      /** The guest address that the page was assigned as. */
      gpa: bigint;
      /** The guest's address space id. A VM has one. */
      asid: number;
      /** 1, or 2 for a page of a 2M entry. */
      level: 1 | 2;
      /** The guest has validated it (PVALIDATE). */
      validated: boolean;
    };

const OPERATIONS = { private: 1, shared: 2, psmash: 3, unsmash: 4 } as const;
export type PageOperation = keyof typeof OPERATIONS;

/** One entry of the buffer of a page-state change. */
export interface PageStateEntry {
  gpa: U64;
  /** KVM acts on private and shared, and counts the others as done. */
  operation: PageOperation;
  /** Default '4K'. */
  pageSize?: PageSize;
  /** How many 4K pages of the entry are done already; default 0. */
  curPage?: number;
}

/** What the guest asks for: by MSR one 4K page, by the GHCB's buffer up to 253 entries. */
export type PageStateChange =
  | { protocol: 'msr'; gpa: U64; operation: PageOperation }
  | {
      protocol: 'ghcb';
      entries: readonly PageStateEntry[];
      /** The header's fields: the first entry to look at (default 0) and the last (default the last of `entries`). */
      curEntry?: number;
      endEntry?: number;
    };

/** KVM_EXIT_HYPERCALL with KVM_HC_MAP_GPA_RANGE: userspace converts the range, then completes the exit. */
export interface MapGpaRangeExit {
  reason: 'hypercall';
  gpa: bigint;
  /** 4K pages. */
  npages: number;
  private: boolean;
  pageSize: PageSize;
}

/** The guest goes on. `response` is 'ok', or why not; `curEntry` is the header's, behind the entries that were done. */
export interface PageStateResponse {
  reason: 'done';
  response: 'ok' | 'INVALID_HDR' | 'INVALID_ENTRY' | 'GENERIC' | 'MSR_ERROR';
  curEntry: number;
  /** The exits that were answered on the way, if an answer was given for them. */
  exits?: MapGpaRangeExit[];
}
const RESPONSES = ['ok', 'INVALID_HDR', 'INVALID_ENTRY', 'GENERIC', 'MSR_ERROR'] as const;

/** How an RMP fault ended: the first four are logged and ignored. */
export const RMP_FAULT_OUTCOMES = ['not-private', 'no-slot', 'no-page', 'unassigned', 'spurious', 'psmash'] as const;
export type RmpFaultOutcome = (typeof RMP_FAULT_OUTCOMES)[number];

export const PVALIDATE_REASONS = ['done', 'size-mismatch', 'memory_fault', 'error', 'retry'] as const;
/** How a run of PVALIDATE ended. */
export interface PvalidateResult {
  /** 'size-mismatch': 2M was asked for where the RMP entry or the mapping is of 4K. 'retry': the RMP entry is of another gpa. */
  reason: (typeof PVALIDATE_REASONS)[number];
  /** Address of the page that ended it; the end of the range if all was done. */
  gpa: bigint;
  /** 4K pages whose validated bit changed, and that had it as asked before (the carry flag). */
  changed: number;
  unchanged: number;
  /** Errno name that KVM_RUN returns. */
  errno?: string;
}

/** VMGEXIT_PSC_MAX_COUNT */
export const PSC_MAX_ENTRIES = 253;

/** The gfn of a page-aligned gpa below 2^52. */
export function alignedGfn(value: unknown, name: string): number {
  const [low, high] = halvesOf(value, name);
  const gpa = low + high * 4294967296;
  if (gpa >= 2 ** 52) throw new RangeError(`${name} is 0x${gpa.toString(16)}: it must be below 2^52`);
  if (low % 4096 !== 0) throw new RangeError(`${name} is 0x${gpa.toString(16)}: it must be a multiple of 4096`);
  return gpa / 4096;
}

function operationNumber(value: unknown, name: string): number {
  return OPERATIONS[oneOf(value, name, Object.keys(OPERATIONS) as PageOperation[])];
}

/** The arguments of pscBeginMsr() behind the vCPU's. */
export function msrArguments(change: PageStateChange & { protocol: 'msr' }): [gfn: number, operation: number] {
  return [alignedGfn(change.gpa, 'gpa'), operationNumber(change.operation, 'operation')];
}

/** The entries as the GHCB holds them: cur_page 12 bits, gfn 40, operation 4, pagesize 1. Two u32 words each. */
export function encodeEntries(entries: unknown): Uint32Array {
  if (!Array.isArray(entries)) throw new TypeError(`entries is ${String(entries)}: it must be an array`);
  if (entries.length < 1 || entries.length > PSC_MAX_ENTRIES) {
    throw new RangeError(`entries has ${entries.length} entries: the buffer holds 1 to ${PSC_MAX_ENTRIES}`);
  }
  const words = new Uint32Array(entries.length * 2);
  for (const [index, entry] of (entries as PageStateEntry[]).entries()) {
    const name = `entries[${index}]`;
    object(entry, name);
    const gfn = alignedGfn(entry.gpa, `${name}.gpa`);
    const curPage = integer(entry.curPage ?? 0, `${name}.curPage`, 0, 4095);
    const operation = operationNumber(entry.operation, `${name}.operation`);
    const huge = oneOf(entry.pageSize ?? '4K', `${name}.pageSize`, PAGE_SIZES) === '2M' ? 1 : 0;
    words[index * 2] = curPage + (gfn % 2 ** 20) * 4096;
    words[index * 2 + 1] = Math.floor(gfn / 2 ** 20) + operation * 2 ** 20 + huge * 2 ** 24;
  }
  return words;
}

/** What the engine answered a page-state change with: `status` 1 is an exit, 0 the end. */
export function decodePsc(status: number, result: (index: number) => number): MapGpaRangeExit | PageStateResponse {
  if (status === 0) return { reason: 'done', response: RESPONSES[result(0)], curEntry: result(1) };
  return {
    reason: 'hypercall',
    gpa: BigInt(result(0)) * 4096n,
    npages: result(1),
    private: result(2) === 1,
    pageSize: PAGE_SIZES[result(3) - 1],
  };
}

export function decodeRmp(result: (index: number) => number): RmpEntry {
  if (result(0) === 0) return { assigned: false };
  return {
    assigned: true,
    gpa: BigInt(result(1)) * 4096n,
    asid: 1,
    level: result(2) === 2 ? 2 : 1,
    validated: result(3) === 1,
  };
}
