// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";

import {IStakeRegistry} from "../interfaces/IStakeRegistry.sol";

/// @title What a receipt signer signs: receipts, and that it answers for a staker
library Receipts {
    bytes32 internal constant RECEIPT_TYPEHASH = keccak256(
        "Receipt(bytes32 body,bytes32 channel,bytes32 task,uint64 seq,bool final,uint64 tokensIn,uint64 tokensOut,"
        "uint256 amount,bytes32 transcriptRoot,bytes32 quote)"
    );
    bytes32 internal constant BINDING_TYPEHASH =
        keccak256("StakeBinding(address registry,address staker,address receiptSigner,bytes32 peer,uint256 nonce)");

    function digest(IStakeRegistry.Receipt calldata receipt, bytes32 separator) internal pure returns (bytes32) {
        return MessageHashUtils.toTypedDataHash(separator, keccak256(abi.encode(RECEIPT_TYPEHASH, receipt)));
    }

    /// @dev The registry is part of it, so that a binding holds at one registry only; the nonce, so that it holds once.
    function bindingDigest(bytes32 separator, address staker, address receiptSigner, bytes32 peer, uint256 nonce)
        internal
        view
        returns (bytes32)
    {
        return MessageHashUtils.toTypedDataHash(
            separator, keccak256(abi.encode(BINDING_TYPEHASH, address(this), staker, receiptSigner, peer, nonce))
        );
    }

    /// @dev Two different receipts for one step of one task.
    function contradict(
        IStakeRegistry.Receipt calldata first,
        bytes32 firstDigest,
        IStakeRegistry.Receipt calldata second,
        bytes32 secondDigest
    ) internal pure returns (bool) {
        return first.channel == second.channel && first.task == second.task && first.seq == second.seq
            && firstDigest != secondDigest;
    }
}
