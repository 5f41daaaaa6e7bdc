"""Lists mergekit's tests that do not apply to mcompose, by name and with the reason.

A test is applicable when it asserts something about the numbers of a merge by a method that mcompose also has.
The first pattern that matches a test (`*` and `?` as in file names) gives its reason; a pattern that matches no test
is an error, and so is an applicable test that reaches none of mcompose's functions.
"""

from fnmatch import fnmatchcase

__all__ = ["GRADIENTS_LEFT_OUT", "NOT_APPLICABLE", "matches", "reason_for"]

NOT_APPLICABLE: dict[str, tuple[str, ...]] = {
    "needs a GPU (CUDA or MPS)": (
        "*[[]cuda*",
        "test_native_merges_on_mps*",
        "test_fusion_releases_importance_scratch_before_thresholding",
        "test_linear_singleton_peak_memory*",
        "test_slerp_large_weight_has_bounded_inference_scratch",
    ),
    "a method without a native counterpart (arcee_fusion, multislerp, nearswap, ram, ramplus_tl, sce)": (
        "test_fusion_*",
        "test_optional_weight_cannot_silently_drop_a_configured_base[[]multislerp]",
        "test_sce_zero_variance_preserves_shape*",
        "test_state_dict_methods_accept_strided_weights_without_mutation[[]arcee_fusion]",
        "test_state_dict_methods_accept_strided_weights_without_mutation[[]multislerp]",
        "test_state_dict_methods_accept_strided_weights_without_mutation[[]nearswap]",
        "test_state_dict_methods_accept_strided_weights_without_mutation[[]ram*]",
        "test_state_dict_methods_accept_strided_weights_without_mutation[[]sce]",
    ),
    "norms that mcompose does not restore after pruning (l2, linf)": (
        "test_empty_tensor[[]l2-*",
        "test_empty_tensor[[]linf-*",
        "test_norm_rescale",
        "test_zero_density[[]l2]",
        "test_zero_density[[]linf]",
    ),
    "gradients only: mcompose writes checkpoints and is not differentiated": (
        "test_chunked_slerp_gradients",
        "test_incremental_dtype_conversion_preserves_autograd*",
        "test_module_inputs_preserve_parameter_gradients*",
        "test_native_kernels_keep_autograd_and_borrowed_inputs*",
        "test_spherical_merge_gradients_match_finite_differences*",
    ),
    "stated difference: weights that sum to zero are refused (mergekit gives infinities)": (
        "test_linear_zero_weight_sum_follows_tensor_division*",
    ),
    "stated difference: Karcher gives only a zero tensor no direction (mergekit: one shorter than tol)": (
        "test_karcher_below_tolerance_keeps_zero_gradients*1e-07*",
    ),
    "a kernel that the test itself defines: mergekit's decorator, signatures, packing": (
        "test_constrained_non_base_coefficients_accept_empty_axis",
        "test_constraints_survive_both_signature_adapters",
        "test_construction_and_registration_are_independent",
        "test_contract_validates_entire_batch_before_math_runs",
        "test_direct_call_validates_dtype_before_execution*",
        "test_dtype_intermediates_released_between_chunks*",
        "test_execution_controls_do_not_reserve_algorithm_parameter_names",
        "test_explicit_per_group_parameter_values",
        "test_group_adapter_validates_every_group_before_execution*",
        "test_group_kernel_must_preserve_weight_shape",
        "test_group_method_receives_metadata_and_borrowed_inputs",
        "test_group_sequence_checks_all_element_types_before_execution*",
        "test_integer_coefficient_boundaries_pack_exactly*",
        "test_integer_coefficients_overflow_before_any_kernel*",
        "test_kernel_wrappers_do_not_reserve_algorithm_parameter_names*",
        "test_native_signature_rejects_group_annotations",
        "test_non_base_coefficients_cannot_use_an_ignored_base_contract",
        "test_non_base_coefficients_follow_canonical_layout*",
        "test_optional_inputs_keep_their_model_ids_and_coefficients",
        "test_options_are_validated_before_execution",
        "test_per_input_values_are_ordered_and_shape_checked*",
        "test_plain_annotations_preserve_constraints_defaults_and_requiredness*",
        "test_signature_infers_parameter_scopes_and_accepts_shared_lists",
        "test_signature_rejects_missing_or_ambiguous_parameter_types*",
        "test_singleton_batches_borrow_strided_inputs*",
    ),
    "mergekit's error sentences, raised before any kernel runs (mcompose refuses in its own)": (
        "test_embedding_mismatch_fails_before_bucketing",
        "test_graph_rejects_incompatible_loaded_tensors*",
        "test_later_invalid_group_fails_before_any_kernel*",
        "test_merge_state_dicts_validates_keys_before_merging",
        "test_methods_reject_mismatched_embedding_shapes*",
        "test_none_input_ids_are_rejected_at_every_entry_point",
        "test_raw_graph_missing_tensors[[]strict-*",
        "test_raw_graph_rejects_differing_buffers_before_casting*",
        "test_raw_graph_rejects_nonfloating_input_dtype",
        "test_state_dict_merge_rejects_broadcastable_weights",
        "test_state_dict_rejects_nonfloating_dtype_overrides*",
    ),
    "compares two of mergekit's front ends, which would call the same mcompose function": (
        "test_direct_and_state_dict_calls_share_dtype_policy*",
        "test_graph_and_state_dict_merges_agree*",
        "test_optional_inputs_keep_base_and_scoped_coefficients*",
        "test_raw_graph_dtype_policy*",
        "test_raw_graph_merges_batchnorm_without_casting_buffers*",
    ),
    "mergekit's plumbing: buckets, buffers, configuration, optional weights, vocabularies": (
        "test_config_parameter_carrier_preserves_scalar_types",
        "test_different_dtypes_and_input_counts_partition_batches",
        "test_embedding_alignment_promotes_before_copying",
        "test_graph_adapter_preserves_optional_singleton_fallback*",
        "test_module_buffers_are_not_numerically_merged",
        "test_raw_parameter_binding_preserves_zero_values",
    ),
    "memory of mergekit's torch kernels": (
        "test_linear_scratch_is_bounded_independently_of_input_count*",
        "test_task_arithmetic_peak_memory",
    ),
    "needs tests/common.py, which the source distribution lacks": ("test_yaml_mixed_checkpoint_precisions*",),
}
"""Reason -> patterns of the tests that it applies to."""

GRADIENTS_LEFT_OUT: tuple[str, ...] = (
    "test_karcher_below_tolerance_keeps_zero_gradients*",
    "test_karcher_differentiates_output_scale*",
    "test_merge_tensors_aligns_parameters_and_preserves_gradients*",
    "test_model_stock_singularity_retains_base_with_finite_gradients*",
    "test_nuslerp_mixed_collinear_rows_have_finite_gradients*",
    "test_task_arithmetic_values_and_gradients*",
)
"""Tests of values and gradients: run up to the first ``backward``; ``autograd.grad`` returns an empty tuple."""


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Returns whether a test (``test_x[params]``) matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def reason_for(name: str) -> str | None:
    """Returns why a test is not applicable.

    Args:
        name: Name of the test as ``test_x[params]``, without file and class.

    Returns:
        The reason, or None for an applicable test.
    """
    return next((reason for reason, patterns in NOT_APPLICABLE.items() if matches(name, patterns)), None)
