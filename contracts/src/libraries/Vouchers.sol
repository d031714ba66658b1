// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";

/// @title The hashes of a voucher and of a channel's terms
library Vouchers {
    bytes32 internal constant VOUCHER_TYPEHASH =
        keccak256("Voucher(bytes32 channelId,uint256 cumulativeAmount,bytes32 receiptsRoot)");
    bytes32 internal constant CHANNEL_TYPEHASH =
        keccak256("Channel(address escrow,address payer,address payee,address sessionKey,bytes32 salt)");

    /// @dev keccak256(abi.encode(CHANNEL_TYPEHASH, escrow, payer, payee, sessionKey, salt)). Holds at one escrow only;
    /// the chain is not part of it, it is part of the domain that vouchers are signed in. By hand, here and below,
    /// because abi.encode costs 70 gas more, and without it neither `open` nor `redeem` keeps to its gas goal.
    function channelId(address escrow, address payer, address payee, address sessionKey, bytes32 salt)
        internal
        pure
        returns (bytes32 id)
    {
        bytes32 typehash = CHANNEL_TYPEHASH;
        assembly ("memory-safe") {
            let free := mload(0x40) // written to and left free again
            mstore(free, typehash)
            mstore(add(free, 0x20), shr(96, shl(96, escrow)))
            mstore(add(free, 0x40), shr(96, shl(96, payer)))
            mstore(add(free, 0x60), shr(96, shl(96, payee)))
            mstore(add(free, 0x80), shr(96, shl(96, sessionKey)))
            mstore(add(free, 0xa0), salt)
            id := keccak256(free, 0xc0)
        }
    }

    /// @dev keccak256(0x1901 || separator || keccak256(abi.encode(VOUCHER_TYPEHASH, id, cumulativeAmount, receiptsRoot)))
    function digest(bytes32 separator, bytes32 id, uint256 cumulativeAmount, bytes32 receiptsRoot)
        internal
        pure
        returns (bytes32)
    {
        bytes32 typehash = VOUCHER_TYPEHASH;
        bytes32 said;
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore(free, typehash)
            mstore(add(free, 0x20), id)
            mstore(add(free, 0x40), cumulativeAmount)
            mstore(add(free, 0x60), receiptsRoot)
            said := keccak256(free, 0x80)
        }
        return MessageHashUtils.toTypedDataHash(separator, said);
    }
}
