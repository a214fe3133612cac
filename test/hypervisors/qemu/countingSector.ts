/**
 * A disk with no operating system: its boot sector counts in memory and writes each number to the serial port as a line of
 * four letters (a to p are the digits 0 to 15).
 */
export function countingDisk(): Buffer {
  const disk = Buffer.alloc(1024 ** 2);
  disk.set(program, 0);
  disk.writeUInt16LE(0xaa55, 510);
  return disk;
}

/** The numbers that are written on a console; of a last line that is not whole yet, none. */
export function countsOf(console: string): number[] {
  const lines = console.replaceAll("\r", "").split("\n").slice(0, -1);
  return lines
    .map((line) => /[a-p]{4}$/.exec(line)?.[0])
    .filter((line) => line !== undefined)
    .map((line) => [...line].reduce((sum, letter) => sum * 16 + letter.charCodeAt(0) - 97, 0));
}

const program = [
  ...[0x31, 0xc0], // xor ax, ax
  ...[0x8e, 0xd8], // mov ds, ax
  ...[0x8e, 0xd0], // mov ss, ax
  ...[0xbc, 0x00, 0x7c], // mov sp, 0x7c00
  ...[0xc7, 0x06, 0x00, 0x06, 0x00, 0x00], // mov word [0x600], 0
  ...[0xff, 0x06, 0x00, 0x06], // next: inc word [0x600]
  ...[0x8b, 0x1e, 0x00, 0x06], // mov bx, [0x600]
  ...[0xb9, 0x04, 0x00], // mov cx, 4
  ...[0xc1, 0xc3, 0x04], // digit: rol bx, 4
  ...[0x88, 0xd8, 0x24, 0x0f, 0x04, 0x61], // mov al, bl; and al, 15; add al, 'a'
  ...[0xe8, 0x14, 0x00], // call put
  ...[0xe2, 0xf2], // loop digit
  ...[0xb0, 0x0a, 0xe8, 0x0d, 0x00], // mov al, 10; call put
  ...[0xb9, 0x40, 0x00], // mov cx, 64
  ...[0x51, 0x31, 0xc9, 0xe2, 0xfe, 0x59, 0xe2, 0xf8], // wait: push cx; xor cx, cx; loop $; pop cx; loop wait
  ...[0xeb, 0xd5], // jmp next
  ...[0xba, 0xfd, 0x03, 0x50], // put: mov dx, 0x3fd; push ax
  ...[0xec, 0xa8, 0x20, 0x74, 0xfb], // full: in al, dx; test al, 32; jz full
  ...[0x58, 0xba, 0xf8, 0x03, 0xee, 0xc3], // pop ax; mov dx, 0x3f8; out dx, al; ret
];
