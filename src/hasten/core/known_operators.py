"""Operators of torch that a model from somebody else may call.

torch doesn't check all that its operators are given: some write wherever an index says, others read behind the end of
a tensor. So a program (.pt2) or a TorchScript file (.pt) may call only what is listed here: the operators that torch's
exporters to ONNX know, those that compute element by element, those that are made of such operators, and those by which
TorchScript handles numbers, texts, lists and dicts. Gradients, sparse and nested tensors, packed weights, storages and
files are left out. So are operators that were seen to reach other memory, where plain exports don't need them.
"""

from __future__ import annotations

_NAMES = """
abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
adaptive_max_pool2d adaptive_max_pool3d add addbmm addcdiv addcmul addmm addmv addr adjoint affine_grid_generator
alias all allclose alpha_dropout amax amin aminmax angle any append arange arccos arccosh arcsin arcsinh arctan
arctan2 arctanh argmax argmin argsort argwhere as_strided as_tensor asin asinh atan atan2 atanh atleast_1d
atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool3d baddbmm bartlett_window batch_norm bernoulli bilinear bin
binary_cross_entropy binary_cross_entropy_with_logits bincount bitwise_and bitwise_left_shift bitwise_not bitwise_or
bitwise_right_shift bitwise_xor blackman_window block_diag bmm broadcast_in_dim broadcast_shapes broadcast_tensors
broadcast_to bucketize can_cast capitalize cartesian_prod cat cauchy cbrt cdist ceil celu center channel_shuffle chr
chunk clamp clamp_max clamp_min clear clip clone col2im collapse collapse_view column_stack combinations complex
concat concatenate conj conj_physical constant_pad_nd contiguous conv1d conv2d conv3d conv_tbc conv_transpose1d
conv_transpose2d conv_transpose3d convert_element_type convolution copy copysign corrcoef cos cosh
cosine_embedding_loss cosine_similarity count count_nonzero cov cpu cross cross_entropy_loss cuda cummax cummin
cumprod cumsum cumulative_trapezoid data deg2rad degrees dequantize det detach detach_copy device device_put diag
diag_embed diagflat diagonal diagonal_copy dict diff digamma dim dist div divide divmod dot dropout dsplit dstack
einsum element_size elu embedding embedding_bag empty empty_like empty_strided endswith eq equal erf erf_inv erfc
erfinv exp exp2 expand expand_as expandtabs expm1 exponential extend eye fabs factorial
fake_quantize_per_channel_affine fake_quantize_per_tensor_affine feature_alpha_dropout feature_dropout fft_fft
fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ifftshift
fft_ihfft fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq fft_rfftn fill
fill_diagonal find fix flatten flip fliplr flipud float_power floor floor_divide floordiv fmax fmin fmod format frac
frexp frobenius_norm full full_like gamma gather gcd ge gelu geometric ger get get_autocast_dtype get_device glu
gradient greater greater_equal grid_sampler grid_sampler_2d grid_sampler_3d group_norm gru gru_cell gt
hamming_window hann_window hardshrink hardsigmoid hardswish hardtanh has_torch_function hash heaviside hex
hinge_embedding_loss histc hsplit hstack huber_loss hypot i0 igamma igammac im2col imag index index_add index_copy
index_fill index_put index_reduce index_select indices inner insert instance_norm inverse iota
is_autocast_cpu_enabled is_autocast_enabled is_coalesced is_complex is_conj is_contiguous is_floating_point
is_grad_enabled is_inference is_leaf is_neg is_nonzero is_same_size is_scripting is_signed isalnum isalpha isclose
isdecimal isdigit isfinite isidentifier isin isinf islower isnan isneginf isnumeric isposinf isprintable isreal
isspace istft istitle isupper item items join kaiser_window keys kl_div kron kthvalue l1_loss layer_norm lcm ldexp
le leaky_relu len lerp less less_equal lgamma lift_fresh lift_fresh_copy linalg_cholesky linalg_cross linalg_det
linalg_diagonal linalg_eigh linalg_inv linalg_matmul linalg_matrix_norm linalg_matrix_power linalg_multi_dot
linalg_norm linalg_pinv linalg_qr linalg_slogdet linalg_solve linalg_svd linalg_vecdot linalg_vector_norm linear
linspace list ljust log log10 log1p log2 log_normal log_sigmoid log_sigmoid_forward log_softmax logaddexp logaddexp2
logcumsumexp logdet logical_and logical_not logical_or logical_xor logit logspace logsumexp lower lstm lstm_cell
lstrip lt mH mT margin_ranking_loss masked_fill masked_scatter masked_select mathremainder matmul matrix_H
matrix_exp matrix_power max max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d
max_pool3d_with_indices max_unpool2d max_unpool3d maximum mean median meshgrid min minimum mish mm mode modf
moveaxis movedim mse_loss msort mul multinomial multiply mv mvlgamma nan_to_num nanmean nanmedian nanquantile nansum
narrow narrow_copy native_channel_shuffle native_dropout native_group_norm native_layer_norm ne neg negative
new_empty new_empty_strided new_full new_ones new_zeros nextafter nll_loss nll_loss2d nll_loss2d_forward
nll_loss_forward nll_loss_nd nonzero nonzero_static norm norm_except_dim normal not_equal nuclear_norm numel numpy_T
oct one_hot ones ones_like ord outer pad pad_sequence pairwise_distance partition pdist percentFormat permute
pixel_shuffle pixel_unshuffle poisson poisson_nll_loss polar polygamma pop popitem positive pow prelu prod
promote_types quantile quantize_per_tensor rad2deg radians rand rand_like randint randint_like randn randn_like
random randperm range ravel real reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder
remove renorm repeat repeat_interleave replace replication_pad1d replication_pad2d replication_pad3d requires_grad
reshape reshape_as resolve_conj resolve_neg result_type rev reverse rfind rindex rjust rms_norm rnn_relu
rnn_relu_cell rnn_tanh rnn_tanh_cell roll rot90 round row_stack rpartition rrelu rrelu_with_noise rsplit rsqrt
rstrip rsub scalar_tensor scaled_dot_product_attention scatter scatter_add scatter_reduce searchsorted select
select_scatter selu set_grad_enabled setdefault sgn shift_left shift_right_arithmetic sigmoid sign signbit silu sin
sinc sinh size slice slice_scatter slogdet smooth_l1_loss soft_margin_loss softmax softplus softshrink sort sorted
special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1 special_digamma special_entr special_erf
special_erfc special_erfcx special_erfinv special_exp2 special_expit special_expm1 special_gammainc
special_gammaincc special_gammaln special_i0 special_i0e special_i1 special_i1e special_log1p special_log_ndtr
special_log_softmax special_logit special_logsumexp special_modified_bessel_i0 special_modified_bessel_i1
special_modified_bessel_k0 special_modified_bessel_k1 special_multigammaln special_ndtr special_ndtri
special_polygamma special_psi special_round special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1
special_sinc special_softmax special_xlog1py special_xlogy special_zeta split split_dim split_with_sizes splitlines
sqrt square squeeze stack startswith std std_mean stft storage_offset str stride strip sub subtract sum sum_to_size
swapaxes swapcase swapdims sym_constrain_range sym_constrain_range_for_size sym_is_contiguous sym_numel sym_size
sym_storage_offset sym_stride t take take_along_dim tan tanh tensor tensor_split tensordot threshold tile title to
topk trace transpose trapezoid trapz tril tril_indices triplet_margin_loss triu triu_indices true_divide trunc
type_as unbind unflatten unfold uniform unique_consecutive unique_dim unsafe_chunk unsafe_split
unsafe_split_with_sizes unsqueeze update upper upsample_bicubic2d upsample_bilinear2d upsample_linear1d
upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d values vander var var_mean vdot view
view_as view_as_complex view_as_complex_copy view_as_real view_as_real_copy view_copy view_of vsplit vstack warn
where xlogy zero zeros zeros_like zfill __and__ __contains__ __derive_index __getitem__ __iand__ __ilshift__
__interpolate __ior__ __is__ __isnot__ __ixor__ __lshift__ __not__ __or__ __range_length __rshift__ __xor__
_adaptive_avg_pool2d _adaptive_avg_pool3d _assert_async _assert_scalar _assert_tensor_metadata _cast_Byte _cast_Char
_cast_Double _cast_Float _cast_Half _cast_Int _cast_Long _cast_Short _cdist_forward _conj _conj_physical
_convolution _convolution_mode _embedding_bag _embedding_bag_forward_only _euclidean_dist _fft_c2c _fft_c2r _fft_r2c
_functional_assert_async _functional_assert_scalar _functional_sym_constrain_range
_functional_sym_constrain_range_for_size _get_tracing_state _infer_size _linalg_det _list_to_tensor
_local_scalar_dense _log_softmax _native_multi_head_attention _pack_padded_sequence _pad_circular _pad_enum
_pad_packed_sequence _pdist_forward _prelu_kernel _safe_softmax _set_item _shape_as_tensor _size_if_not_equal
_softmax _tensor_to_list _to_copy _transformer_encoder_layer_fwd _unique _unique2 _unsafe_view _unwrap_optional
_upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa _upsample_nearest_exact1d
_upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm _weight_norm_interface
"""
_KNOWN = frozenset(_NAMES.split())


def is_known(name: str) -> bool:
    """Whether a model may call an operator of aten or prims.

    Args:
        name: Its name without an overload, such as "add"; with a trailing `_`, it writes to its first input.
    """
    return name in _KNOWN or name.removesuffix("_") in _KNOWN
