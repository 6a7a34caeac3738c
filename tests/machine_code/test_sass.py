from lada_ops.machine_code.sass import Code, parse

# nvdisasm output: a K loop nested in an N loop, and the jump that pads the end
TEXT = """
\t.section\t.text._kernel,"ax",@progbits
_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_1) ;
.L_x_0:
        /*0020*/               @P1 LDG.E R7, desc[UR12][R20.64+0x10] ;
.L_x_2:
        /*0030*/                   LDGSTS.E.BYPASS.128 [R57+0xc000], desc[UR12][R20.64], P2 ;
        /*0040*/                   LDGSTS.E [R57], desc[UR12][R20.64], !P2 ;
        /*0050*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4].tnspB, R24, gsb0 ;
        /*0060*/               @P3 BRA `(.L_x_2) ;
        /*0070*/                   HMMA.16816.F32 R4, R12, R8, R4 ;
        /*0080*/              @!UP0 BRA `(.L_x_0) ;
.L_x_1:
        /*0090*/                   FADD R4, R4, R5 ;
        /*00a0*/               @P1 STG.E.128 desc[UR12][R26.64], R32 ;
        /*00b0*/                   STG.E.U16 desc[UR12][R26.64+0x10], R32 ;
        /*00c0*/                   EXIT ;
.L_x_3:
        /*00d0*/                   BRA `(.L_x_3);
"""


def test_instructions_keep_order_and_modifiers():
    code = parse(TEXT)
    assert len(code) == 14
    assert code.opcodes[:3] == ("LDC", "BRA", "LDG.E")
    assert code.opcodes[8] == "BRA"


def test_only_innermost_loops_are_kept_and_padding_is_none():
    assert parse(TEXT).spans == ((3, 7),)


def test_opcodes_are_counted_whatever_their_modifiers():
    code = parse(TEXT)
    assert code.count("LDG") == 1
    assert code.count("LDG", "STG") == 3


def test_async_copies_are_told_by_width():
    (loop,) = parse(TEXT).tensor_loops
    assert loop.async_copies == 2
    assert loop.copy_bits == {128, 32}


def test_stores_are_counted_in_bytes():
    assert parse(TEXT).stored_bytes == 16 + 2


def test_loops_that_neither_store_nor_sum_rows_are_reductions():
    product = ("HGMMA.64x64x16.F32", "BRA")
    loops = product + ("SHFL.BFLY", *product) + ("STG.E", *product)
    code = Code(loops, ((0, 2), (2, 5), (5, 8)))
    assert [loop.opcodes for loop in code.tensor_loops] == [loops[:2], loops[2:5], loops[5:]]
    assert [loop.opcodes for loop in code.reductions] == [product]


def test_epilogue_is_what_follows_the_last_product():
    epilogue = parse(TEXT).epilogue
    assert epilogue is not None
    assert epilogue.opcodes[:2] == ("HMMA.16816.F32", "BRA")


def test_epilogue_is_the_loop_with_the_stores_if_there_is_one():
    code = Code(("HGMMA.64x64x16.F32", "BRA", "STG.E", "BRA", "EXIT"), ((0, 2), (2, 4)))
    epilogue = code.epilogue
    assert epilogue is not None
    assert epilogue.opcodes == ("STG.E", "BRA")


def test_code_that_stores_nothing_has_no_epilogue():
    assert Code(("HGMMA.64x64x16.F32", "BRA"), ((0, 2),)).epilogue is None


def test_work_of_a_warpgroup_and_of_a_warp():
    code = Code(("HGMMA.64x128x16.F32.BF16", "HMMA.16816.F32"))
    assert code.tensor_work(128) == 2 * 64 * 128 * 16 + 4 * 2 * 16 * 8 * 16
    assert code.tensor_work(256) == 2 * code.tensor_work(128)
