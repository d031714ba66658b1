// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IPaymentChannels} from "../interfaces/IPaymentChannels.sol";

/// @title The state of one channel in one slot: deposit (96 bits), redeemed (96 bits), closesAt (64 bits)
/// @dev A type of its own and not a packed struct, which the compiler reads and writes field by field: 250 gas a voucher.
type ChannelState is uint256;

using Channels for ChannelState global;

/// @title The rules of one channel: what may come in, what may go out, when it ends
/// @dev Pure: each rule takes a state and gives the next one. Knows amounts and times; who may ask, the slot and the
/// tokens are the contract's business.
library Channels {
    /// @dev `closesAt` of a channel that has ended. No block has this time.
    uint64 internal constant CLOSED = type(uint64).max;

    function deposit(ChannelState self) internal pure returns (uint256) {
        return ChannelState.unwrap(self) >> 160;
    }

    function redeemed(ChannelState self) internal pure returns (uint256) {
        return uint96(ChannelState.unwrap(self) >> 64);
    }

    function closesAt(ChannelState self) internal pure returns (uint64) {
        return uint64(ChannelState.unwrap(self));
    }

    function opened(ChannelState self, bytes32 id, uint256 amount) internal pure returns (ChannelState) {
        if (ChannelState.unwrap(self) != 0) revert IPaymentChannels.AlreadyOpened(id);
        _requireInRange(amount);
        return _pack(amount, 0, 0);
    }

    /// @dev Refused while closing: the payee answers a request to close by the deposit that it saw.
    function toppedUp(ChannelState self, bytes32 id, uint256 amount) internal pure returns (ChannelState) {
        _requireLive(self, id);
        if (self.closesAt() != 0) revert IPaymentChannels.Closing(id, self.closesAt());
        _requireInRange(amount);
        uint256 sum = self.deposit() + amount;
        _requireInRange(sum);
        return _pack(sum, self.redeemed(), 0);
    }

    /// @dev What a voucher for `cumulativeAmount` adds to what was redeemed; 0 if it is stale or above the deposit.
    function due(ChannelState self, uint256 cumulativeAmount) internal pure returns (uint256) {
        uint256 before = self.redeemed();
        if (cumulativeAmount <= before || cumulativeAmount > self.deposit()) return 0;
        unchecked {
            return cumulativeAmount - before;
        }
    }

    /// @dev Only after `due` has said that the voucher adds something.
    function redeemedTo(ChannelState self, uint256 cumulativeAmount) internal pure returns (ChannelState) {
        return _pack(self.deposit(), cumulativeAmount, self.closesAt());
    }

    function closing(ChannelState self, bytes32 id, uint64 ends) internal pure returns (ChannelState) {
        _requireLive(self, id);
        if (self.closesAt() != 0) revert IPaymentChannels.Closing(id, self.closesAt());
        return _pack(self.deposit(), self.redeemed(), ends);
    }

    /// @dev A state that nothing can be added to or taken from.
    function closed(ChannelState self, bytes32 id, uint256 time, bool atOnce)
        internal
        pure
        returns (ChannelState state, uint256 refund)
    {
        _requireLive(self, id);
        uint64 ends = self.closesAt();
        if (!atOnce && (ends == 0 || time < ends)) revert IPaymentChannels.TooEarly(id, ends);
        refund = self.deposit() - self.redeemed();
        state = _pack(self.redeemed(), self.redeemed(), CLOSED);
    }

    function unpacked(ChannelState self) internal pure returns (IPaymentChannels.Channel memory) {
        return IPaymentChannels.Channel(uint96(self.deposit()), uint96(self.redeemed()), self.closesAt());
    }

    /// @dev Open or closing, so with a deposit.
    function _requireLive(ChannelState self, bytes32 id) private pure {
        if (self.deposit() == 0 || self.closesAt() == CLOSED) revert IPaymentChannels.NotOpen(id);
    }

    function _requireInRange(uint256 amount) private pure {
        unchecked {
            // One comparison for both ends: 0 wraps around to the largest.
            if (amount - 1 >= type(uint96).max) revert IPaymentChannels.AmountOutOfRange(amount);
        }
    }

    /// @dev `deposit_` and `redeemed_` fit 96 bits: each deposit was in range, and nothing above it is redeemed.
    function _pack(uint256 deposit_, uint256 redeemed_, uint64 closesAt_) private pure returns (ChannelState) {
        return ChannelState.wrap(deposit_ << 160 | redeemed_ << 64 | closesAt_);
    }
}
