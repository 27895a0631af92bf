// Cooperative matrix types of the device: EDGE x EDGE, left and right factors in f16, accumulators in f32.
@if(EDGE_8) alias Left = coop_mat8x8<f16, A>;
@if(EDGE_8) alias Right = coop_mat8x8<f16, B>;
@if(EDGE_8) alias Sum = coop_mat8x8<f32, C>;
@if(!EDGE_8) alias Left = coop_mat16x16<f16, A>;
@if(!EDGE_8) alias Right = coop_mat16x16<f16, B>;
@if(!EDGE_8) alias Sum = coop_mat16x16<f32, C>;
