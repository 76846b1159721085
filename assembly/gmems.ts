// The guest_memfd files of a VM: their pages, and which slots bind them.
//
// One file is one inode here; an inode shared by two VMs is out of scope. Its pages are a tree keyed by page index.
// Mirrors: struct kvm_gmem, virt/kvm/guest_memfd.c

import { ctl } from './control';
import { GMEM_BASE, GMEM_BYTES } from './layout';

/** Flags of a page of the file: allocated, prepared, and what the guest has in it. */
export const PAGE_RESIDENT: u32 = 1;
/** The guest has content here: it wrote, or on a TD accepted the page. */
export const PAGE_WRITTEN: u32 = 2;
/** It once had: a page that is touched and not written lost what was in it. */
export const PAGE_TOUCHED: u32 = 8;
export const PAGE_POISONED: u32 = 16;
/** The PAMT says that the page belongs to a TD: a leaf of its S-EPT maps it. */
export const PAGE_OWNED: u32 = 32;
/** Someone beside guest_memfd holds a reference of the page's folio. */
export const PAGE_PINNED: u32 = 4;
/** The VMM has the page mapped. */
export const PAGE_MAPPED: u32 = 128;
/** Part of a 2M folio: of all 512 pages of an aligned block, or of none. */
export const PAGE_FOLIO: u32 = 64;
export const PAGES_LEVEL: i32 = 7;

/** GUEST_MEMFD_FLAG_MMAP and _INIT_SHARED. */
export const GMEM_MMAP: u32 = 1;
export const GMEM_INIT_SHARED: u32 = 2;

// Gmem, 96 bytes. open = 0 after the last fput; the record is then free.
@unmanaged
export class Gmem {
  used: u32;
  open: u32;
  fd: i32;
  /** Tells a file from an earlier one with the same descriptor. */
  serial: u32;
  sizeBytes: u64;
  pagesLo: u64;
  pagesHi: u64;
  /** The RMP entries of the pages (rmp.ts). */
  rmpLo: u64;
  rmpHi: u64;
  /** 0 or 9: the order of the folios that it allocates where one fits. */
  folioOrder: u32;
  /** GUEST_MEMFD_FLAG_*, form gmem-in-place only. */
  flags: u32;
  /** Which pages are private, form gmem-in-place only. */
  attributesLo: u64;
  attributesHi: u64;
  pad3: u64;
  pad4: u64;
}
if (offsetof<Gmem>() != 96) ERROR('Gmem is no longer 96 bytes: redraw it');

export function gmemAt(index: u32): Gmem {
  return changetype<Gmem>(GMEM_BASE + <usize>index * GMEM_BYTES);
}
export function pagesTree(gmem: Gmem): usize {
  return changetype<usize>(gmem) + offsetof<Gmem>('pagesLo');
}

export function attributesTree(gmem: Gmem): usize {
  return changetype<usize>(gmem) + offsetof<Gmem>('attributesLo');
}

/** The index of a record of the table. */
export function gmemIndexOf(gmem: Gmem): u32 {
  return <u32>((changetype<usize>(gmem) - GMEM_BASE) / GMEM_BYTES);
}

/** Pages of the file. */
export function npagesOf(gmem: Gmem): u64 {
  return gmem.sizeBytes >> 12;
}

/** The open file that a handle means: descriptor and serial. index + 1, 0 if it was closed. */
export function gmemByHandle(fd: i32, serial: u32): u32 {
  const file = gmemByFd(fd);
  return file != 0 && gmemAt(file - 1).serial == serial ? file : 0;
}

/** The open file with this descriptor; index + 1, 0 if none. */
export function gmemByFd(fd: i32): u32 {
  for (let index: u32 = 0; index < ctl.gmemHighWater; index++) {
    const gmem = gmemAt(index);
    if (gmem.used != 0 && gmem.open != 0 && gmem.fd == fd) return index + 1;
  }
  return 0;
}
