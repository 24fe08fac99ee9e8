# The boot loader: 16-bit code in the disk's first sector, for a BIOS. It knows where on the disk the kernel and the
# initramfs lie, and starts the kernel by its own protocol for real mode (the kernel's Documentation/arch/x86/boot.rst).
#
# Why not GRUB: under emulation a read through the BIOS takes milliseconds whatever its size, and GRUB reads 32 KiB at
# once; then it moves the whole kernel and the room that it will unpack itself in, 54 MiB, byte by byte. Together that
# takes as long as all the rest of the start. Here reads are of 64 KiB, which is the most that SeaBIOS does, and are those
# of the image's clusters, each of which is unpacked once.
#
# To be defined: `at` (first sector of what is loaded: a sector with the command line, the kernel's setup, nothing, the
# kernel, the initramfs), `setup`, `nothing`, `kernel`, `initramfs` (their lengths in sectors), `initramfs_bytes`.

    .code16
    .set    buffer, 0x10000             # below 640 KiB, where the BIOS can reach
    .set    most, 128                   # sectors that go in there
    .set    command_line, 0x8000
    .set    setup_at, 0x90000
    .set    stack, 0xe000               # behind setup's code, in its segment; below the BIOS's data
    .set    kernel_at, 0x100000
    .set    initramfs_at, 0x6000000     # above what the kernel needs to unpack itself

start:
    xor     %ax, %ax
    mov     %ax, %ds
    mov     %ax, %es
    mov     %ax, %ss
    mov     $0x7c00, %sp
    ljmp    $0, $1f
1:  cld
    mov     %dl, drive

    mov     $command_line, %edi
    mov     $1, %ebp
    call    load
    mov     $setup_at, %edi
    mov     $setup, %ebp
    call    load
    addl    $nothing, sector
    mov     $kernel_at, %edi
    mov     $kernel, %ebp
    call    load
    mov     $initramfs_at, %edi
    mov     $initramfs, %ebp
    call    load

    cli
    mov     $(setup_at >> 4), %ax
    mov     %ax, %ds
    mov     %ax, %es
    mov     %ax, %fs
    mov     %ax, %gs
    mov     %ax, %ss
    mov     $stack, %sp
    movb    $0xff, 0x210                # type_of_loader: one without a number
    orb     $0x80, 0x211                # loadflags: there is a heap
    movw    $(stack - 0x200), 0x224     # heap_end_ptr
    movl    $initramfs_at, 0x218        # ramdisk_image
    movl    $initramfs_bytes, 0x21c     # ramdisk_size
    movl    $command_line, 0x228        # cmd_line_ptr
    ljmp    $(setup_at >> 4) + 0x20, $0

# Loads the next %ebp sectors to the address %edi.
load:
    mov     $most, %ecx
    cmp     %ecx, %ebp
    ja      1f
    mov     %ebp, %ecx
1:  mov     %cx, count
    push    %ecx
    push    %edi
    mov     $packet, %si
    mov     drive, %dl
    mov     $0x42, %ah
    int     $0x13
    jc      failed
    pop     %edi
    pop     %ecx

    # The buffer goes to its place, which real mode does not reach: its segments get the limit of protected mode. The
    # BIOS takes that away each time.
    cli
    lgdt    table_at
    mov     %cr0, %eax
    or      $1, %al
    mov     %eax, %cr0
    mov     $8, %bx
    mov     %bx, %ds
    mov     %bx, %es
    and     $0xfe, %al
    mov     %eax, %cr0
    xor     %bx, %bx
    mov     %bx, %ds
    mov     %bx, %es
    add     %ecx, sector
    sub     %ecx, %ebp
    shl     $7, %ecx
    mov     $buffer, %esi
    addr32 rep movsl
    sti
    test    %ebp, %ebp
    jnz     load
    ret

failed:
    mov     $0x0e21, %ax                # "!" on the screen
    int     $0x10
1:  hlt
    jmp     1b

drive:
    .byte   0

    # What the BIOS is to read: its own structure.
    .balign 4
packet:
    .byte   16, 0
count:
    .word   0
    .word   0, buffer >> 4
sector:
    .long   at, 0

    # No segment, and one of all 4 GiB.
    .balign 8
table:
    .quad   0
    .quad   0x00cf92000000ffff
table_at:
    .word   . - table - 1
    .long   table
