// What KVM does for an SNP guest beside mapping: page-state changes that the guest asks for by VMGEXIT, and RMP faults.
//
// A page-state change becomes KVM_HC_MAP_GPA_RANGE exits to userspace, one at a time. What is in flight between an exit
// and its completion is a record of the vCPU: the header and the entries of the GHCB buffer, as the guest wrote them.
//
//   Psc, 2,048 bytes at PSC_BASE:
//   0       4       8          12         16         20  24
//   ├───────┼───────┼──────────┼──────────┼──────────┼───┼─────────────────────────────
//   │ state │ index │ inflight │ curEntry │ endEntry │   │ 253 entries of 8 bytes
//   └───────┴───────┴──────────┴──────────┴──────────┴───┴─────────────────────────────
//   entry: cur_page 0-11 │ gfn 12-51 │ operation 52-55 │ pagesize 56
//
// Mirrors: arch/x86/kvm/svm/sev.c (snp_begin_psc, snp_complete_one_psc, snp_begin_psc_msr, sev_handle_rmp_fault)
// Left out: every other VMGEXIT; the GHCB itself, which is shared memory of the guest.

import {
  C_EXITS_HYPERCALL,
  C_RMP_FAULTS_IGNORED,
  C_RMP_FAULTS_PSMASH,
  C_RMP_FAULTS_SPURIOUS,
  count,
  ctl,
  VM_SNP,
} from './control';
import { gmemAt } from './gmems';
import { gmemGetPfn } from './guest_memfd';
import { IO_BASE, PSC_BASE, PSC_BYTES } from './layout';
import { memIsPrivate } from './mem_attributes';
import { endGfnOf, gfnToMemslot, MEM_GUEST_MEMFD } from './memslots';
import { zapGfnRange } from './mmu';
import { RMP_2M, RMP_ASSIGNED, RMP_VALIDATED, rmpFlags, rmpGfn, rmpPsmash, rmpRunEnd } from './rmp';
import { EBUSY, EINVAL, STATUS_NO_HANDLE } from './status';
import { EV_HYPERCALL_EXIT, EV_RMP_FAULT, trace2 } from './trace';
import { indexOfVcpu, Vcpu } from './vcpus';

// --- RMP faults ------------------------------------------------------------------------------------------------------

/** How an RMP fault ended. The first four are logged and ignored. */
export const RMP_FAULT_NOT_PRIVATE: i32 = 0;
export const RMP_FAULT_NO_SLOT: i32 = 1;
export const RMP_FAULT_NO_PAGE: i32 = 2;
export const RMP_FAULT_UNASSIGNED: i32 = 3;
export const RMP_FAULT_SPURIOUS: i32 = 4;
export const RMP_FAULT_PSMASH: i32 = 5;

/**
 * An #NPF with the RMP bit at `gfn`. A 2M entry is split, and what maps [gfn, gfn + 512) zapped, whether or not gfn is the
 * entry's first. Returns RMP_FAULT_*. Requires: reserveFault(). Mirrors: sev_handle_rmp_fault()
 */
export function handleRmpFault(vcpuIndex: u32, gfn: u64): i32 {
  if (!memIsPrivate(gfn)) return ignored(RMP_FAULT_NOT_PRIVATE);
  const slot = gfnToMemslot(0, gfn);
  if (slot === null || (slot.flags & MEM_GUEST_MEMFD) == 0) return ignored(RMP_FAULT_NO_SLOT);
  if (gmemGetPfn(slot, gfn, 1, true) != 0) return ignored(RMP_FAULT_NO_PAGE);
  const gmem = gmemAt(slot.gmem - 1);
  const page = gfn - slot.baseGfn + slot.gmemPgoff;
  const flags = rmpFlags(gmem, page);
  if (flags == 0) return ignored(RMP_FAULT_UNASSIGNED);
  const isHuge = (flags & RMP_2M) != 0;
  if (isHuge) {
    rmpPsmash(gmem, page);
    zapGfnRange(gfn, gfn + 512);
  }
  count(isHuge ? C_RMP_FAULTS_PSMASH : C_RMP_FAULTS_SPURIOUS, 1);
  if (ctl.traceOn != 0) trace2(EV_RMP_FAULT, isHuge ? 2 : 1, vcpuIndex, gfn, page, 0);
  return isHuge ? RMP_FAULT_PSMASH : RMP_FAULT_SPURIOUS;
}

function ignored(why: i32): i32 {
  count(C_RMP_FAULTS_IGNORED, 1);
  return why;
}

/** What the hardware's look at the RMP says of a guest's access through a private leaf. */
export const RMP_PASSES: u32 = 0;
export const RMP_FAULTS: u32 = 1;
export const RMP_NOT_VALIDATED: u32 = 2;
/** End of the gfns from the one that rmpCheck() looked at that pass alike, below its limit. */
export let rmpCheckedEnd: u64 = 0;

/**
 * The hardware's check of an access to the gfns from `gfn` on, mapped by private leaves of `level`: the entry must be
 * assigned and of that level. With ctl.rmpChecks also of that gpa and validated.
 */
export function rmpCheck(gfn: u64, limit: u64, level: i32): u32 {
  rmpCheckedEnd = limit;
  const slot = gfnToMemslot(0, gfn);
  if (slot === null || slot.gmem == 0) return RMP_PASSES;
  const gmem = gmemAt(slot.gmem - 1);
  const delta = slot.baseGfn - slot.gmemPgoff;
  const page = gfn - delta;
  const flags = rmpFlags(gmem, page);
  rmpCheckedEnd = rmpRunEnd(gmem, page, min(limit, endGfnOf(slot)) - delta) + delta;
  if ((flags & RMP_ASSIGNED) == 0 || ((flags & RMP_2M) != 0) != level > 1) return RMP_FAULTS;
  if (ctl.rmpChecks == 0) return RMP_PASSES;
  if (rmpGfn(gmem, page, flags) != gfn) return RMP_FAULTS;
  return (flags & RMP_VALIDATED) != 0 ? RMP_PASSES : RMP_NOT_VALIDATED;
}

// --- Page-state changes ----------------------------------------------------------------------------------------------

@unmanaged
class Psc {
  state: u32;
  index: u32;
  inflight: u32;
  curEntry: u32;
  endEntry: u32;
  pad: u32;
}
const ENTRIES_AT: usize = 24;
if (offsetof<Psc>() != ENTRIES_AT) ERROR('Psc no longer ends where its entries begin: redraw it');
/** VMGEXIT_PSC_MAX_COUNT */
export const PSC_MAX_COUNT: u32 = 253;
if (ENTRIES_AT + <usize>PSC_MAX_COUNT * 8 != PSC_BYTES) ERROR('PSC_BYTES does not hold the entries');

/** 0: nothing is in flight. */
const PSC_MSR: u32 = 1;
const PSC_GHCB: u32 = 2;

/** SNP_PAGE_STATE_PRIVATE and _SHARED; the operations of the buffer have the same numbers. */
const OP_PRIVATE: u32 = 1;
const OP_SHARED: u32 = 2;

/** What the guest is answered. */
export const PSC_OK: u32 = 0;
export const PSC_INVALID_HDR: u32 = 1;
export const PSC_INVALID_ENTRY: u32 = 2;
export const PSC_GENERIC: u32 = 3;
/** GHCB_MSR_PSC_RESP with an error. */
export const PSC_MSR_ERROR: u32 = 4;

/** An exit to userspace: gfn, pages, whether to private, level in result0 to result3. */
const EXITED: i32 = 1;

function pscAt(vcpuIndex: u32): Psc {
  return changetype<Psc>(PSC_BASE + <usize>vcpuIndex * PSC_BYTES);
}
/** Whether a page-state change of `vcpu` waits for userspace: it does not enter the guest meanwhile. */
export function pscWaits(vcpu: Vcpu): bool {
  return ctl.pscHighWater != 0 && pscAt(indexOfVcpu(vcpu)).state != 0;
}
function entryPtr(psc: Psc, index: u32): usize {
  return changetype<usize>(psc) + ENTRIES_AT + ((<usize>index) << 3);
}
function entryAt(psc: Psc, index: u32): u64 {
  return load<u64>(entryPtr(psc, index));
}
function curPageOf(entry: u64): u64 {
  return entry & 0xfff;
}
function gfnOf(entry: u64): u64 {
  return (entry >> 12) & (((<u64>1) << 40) - 1);
}
function operationOf(entry: u64): u32 {
  return <u32>(entry >> 52) & 15;
}
function isHugeEntry(entry: u64): bool {
  return ((entry >> 56) & 1) != 0;
}

/** The guest goes on with `response`; result0 is that, result1 the header's cur_entry. */
function respond(psc: Psc, response: u32): i32 {
  const curEntry = psc.curEntry;
  memory.fill(changetype<usize>(psc), 0, PSC_BYTES);
  ctl.result0 = <f64>response;
  ctl.result1 = <f64>curEntry;
  return 0;
}

function exitToUserspace(vcpuIndex: u32, gfn: u64, npages: u64, operation: u32, isHuge: bool): i32 {
  count(C_EXITS_HYPERCALL, 1);
  const isPrivate = operation == OP_PRIVATE;
  if (ctl.traceOn != 0) {
    trace2(EV_HYPERCALL_EXIT, (isPrivate ? 1 : 0) | (isHuge ? 2 : 0), vcpuIndex, gfn, npages, 0);
  }
  ctl.result0 = <f64>gfn;
  ctl.result1 = <f64>npages;
  ctl.result2 = isPrivate ? 1 : 0;
  ctl.result3 = isHuge ? 2 : 1;
  return EXITED;
}

function userExitsOnMapGpaRange(): bool {
  return ctl.exitHypercall != 0;
}

/** The vCPU's record, free for a new request; null if it has none to give (why in refusal). */
let refusal: i32 = 0;
function newPsc(vcpuIndex: u32): Psc | null {
  refusal = 0;
  if (vcpuIndex >= ctl.vcpuCount) refusal = STATUS_NO_HANDLE;
  else if (ctl.vmType != VM_SNP) refusal = -EINVAL;
  else if (pscAt(vcpuIndex).state != 0) refusal = -EBUSY;
  if (refusal != 0) return null;
  if (vcpuIndex >= ctl.pscHighWater) ctl.pscHighWater = vcpuIndex + 1;
  return pscAt(vcpuIndex);
}

/** GHCB_MSR_PSC_REQ: one 4K page. Returns 0 (answered) or EXITED. Mirrors: snp_begin_psc_msr() */
export function pscBeginMsr(vcpuIndex: u32, gfn: f64, operation: u32): i32 {
  const psc = newPsc(vcpuIndex);
  if (psc === null) return refusal;
  if (operation != OP_PRIVATE && operation != OP_SHARED) return respond(psc, PSC_MSR_ERROR);
  if (!userExitsOnMapGpaRange()) return respond(psc, PSC_MSR_ERROR);
  psc.state = PSC_MSR;
  return exitToUserspace(vcpuIndex, <u64>gfn, 1, operation, false);
}

/**
 * VMGEXIT for the buffer whose `entries` entries stand at IO_BASE, the rest zero; the header says `curEntry` and
 * `endEntry`. Returns 0 (answered) or EXITED.
 */
export function pscBegin(vcpuIndex: u32, curEntry: u32, endEntry: u32, entries: u32): i32 {
  const psc = newPsc(vcpuIndex);
  if (psc === null) return refusal;
  psc.state = PSC_GHCB;
  psc.curEntry = curEntry;
  psc.endEntry = endEntry;
  memory.copy(entryPtr(psc, 0), IO_BASE, (<usize>min(entries, PSC_MAX_COUNT)) << 3);
  if (!userExitsOnMapGpaRange()) return respond(psc, PSC_GENERIC);
  return nextRange(vcpuIndex, psc);
}

/** The range was of operations that KVM does not act on: they count as done, the next one follows. */
const GO_ON: i32 = 2;

/** Mirrors: snp_begin_psc() */
function nextRange(vcpuIndex: u32, psc: Psc): i32 {
  let status = GO_ON;
  while (status == GO_ON) status = beginRange(vcpuIndex, psc);
  return status;
}

/**
 * Sends the next range of the buffer to userspace: its first entry that is not done, with those behind it that go on
 * where it ends, with the same operation and page size.
 */
function beginRange(vcpuIndex: u32, psc: Psc): i32 {
  const end = psc.endEntry;
  if (end >= PSC_MAX_COUNT) return respond(psc, PSC_INVALID_HDR);
  let entry: u64 = 0;
  let gfn: u64 = 0;
  let npages: u64 = 0;
  let isHuge: bool = false;
  let isPart: bool = false;
  let index = psc.curEntry;
  for (; index <= end; index++) {
    entry = entryAt(psc, index);
    gfn = gfnOf(entry);
    isHuge = isHugeEntry(entry);
    npages = isHuge ? 512 : 1;
    const curPage = curPageOf(entry);
    if (curPage > npages || (gfn & (npages - 1)) != 0) return respond(psc, PSC_INVALID_ENTRY);
    // What is left of a 2M entry goes on as 4K pages, and by itself.
    isPart = curPage != 0;
    if (isPart) {
      npages -= curPage;
      gfn += curPage;
      isHuge = false;
    }
    if (npages != 0) break;
    psc.curEntry++;
  }
  if (index > end) return respond(psc, PSC_OK);
  const operation = operationOf(entry);
  psc.index = index;
  psc.inflight = 1;
  while (!isPart && index + psc.inflight <= end) {
    const next = entryAt(psc, index + psc.inflight);
    if (operationOf(next) != operation || gfnOf(next) != gfn + npages) break;
    if (curPageOf(next) != 0 || isHugeEntry(next) != isHuge) break;
    psc.inflight++;
    npages += isHuge ? 512 : 1;
  }
  if (operation == OP_PRIVATE || operation == OP_SHARED) {
    return exitToUserspace(vcpuIndex, gfn, npages, operation, isHuge);
  }
  rangeDone(psc);
  return GO_ON;
}

/** Marks the entries in flight as done. Mirrors: __snp_complete_one_psc() */
function rangeDone(psc: Psc): void {
  for (let at = psc.index; at < psc.index + psc.inflight; at++) {
    const entry = entryAt(psc, at);
    store<u64>(entryPtr(psc, at), (entry & ~0xfff) | (isHugeEntry(entry) ? 512 : 1));
  }
  psc.curEntry = psc.index + psc.inflight;
  psc.inflight = 0;
}

/**
 * Userspace has handled the exit; `ret` is what it left in run->hypercall.ret. Returns 0 (answered) or EXITED, or
 * -EINVAL if no exit waits. Mirrors: snp_complete_one_psc(), snp_complete_psc_msr()
 */
export function pscComplete(vcpuIndex: u32, ret: u32): i32 {
  if (vcpuIndex >= ctl.vcpuCount) return STATUS_NO_HANDLE;
  const psc = pscAt(vcpuIndex);
  if (psc.state == 0) return -EINVAL;
  if (psc.state == PSC_MSR) return respond(psc, ret != 0 ? PSC_MSR_ERROR : PSC_OK);
  if (ret != 0) return respond(psc, PSC_GENERIC);
  rangeDone(psc);
  return nextRange(vcpuIndex, psc);
}
