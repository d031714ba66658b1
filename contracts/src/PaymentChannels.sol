// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

import {NetworkDomain} from "./base/NetworkDomain.sol";
import {IPaymentChannels} from "./interfaces/IPaymentChannels.sol";
import {ChannelState} from "./libraries/Channels.sol";
import {Permits} from "./libraries/Permits.sol";
import {TypedData} from "./libraries/TypedData.sol";
import {Vouchers} from "./libraries/Vouchers.sol";

/// @title Payment channels: see IPaymentChannels
/// @dev State is written and logged before tokens move, and the token is OCTO, which calls nobody: no lock is needed.
contract PaymentChannels is IPaymentChannels, NetworkDomain {
    using SafeERC20 for IERC20;

    /// @inheritdoc IPaymentChannels
    IERC20 public immutable override token;
    /// @inheritdoc IPaymentChannels
    uint64 public immutable override challengePeriod;

    /// @dev Around the state so that a function can point at the slot: it is hashed to once, not twice.
    struct Slot {
        ChannelState state;
    }

    mapping(bytes32 channelId => Slot) private _channels;

    /// @param network the network's name; its salt is part of what session keys sign
    constructor(IERC20 token_, string memory network, uint64 challengePeriod_) NetworkDomain(network) {
        if (challengePeriod_ == 0 || challengePeriod_ > 30 days) revert ChallengePeriodOutOfRange(challengePeriod_);
        token = token_;
        challengePeriod = challengePeriod_;
    }

    /// @inheritdoc IPaymentChannels
    function channelIdOf(Terms calldata terms) external view override returns (bytes32) {
        return _channelId(terms.payer, terms.payee, terms.sessionKey, terms.salt);
    }

    /// @inheritdoc IPaymentChannels
    function channel(bytes32 channelId) external view override returns (Channel memory) {
        return _channels[channelId].state.unpacked();
    }

    /// @inheritdoc IPaymentChannels
    function voucherDigest(bytes32 channelId, uint256 cumulativeAmount, bytes32 receiptsRoot)
        external
        view
        override
        returns (bytes32)
    {
        return Vouchers.digest(domainSeparator(), channelId, cumulativeAmount, receiptsRoot);
    }

    /// @inheritdoc IPaymentChannels
    function open(address payee, address sessionKey, bytes32 salt, uint256 amount) external override {
        _open(payee, sessionKey, salt, amount);
    }

    /// @inheritdoc IPaymentChannels
    function openWithPermit(
        address payee,
        address sessionKey,
        bytes32 salt,
        uint256 amount,
        uint256 deadline,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external override {
        Permits.tryPermit(address(token), amount, deadline, v, r, s);
        _open(payee, sessionKey, salt, amount);
    }

    /// @inheritdoc IPaymentChannels
    function topUp(bytes32 channelId, uint256 amount) external override {
        Slot storage slot = _channels[channelId];
        ChannelState state = slot.state.toppedUp(channelId, amount);
        slot.state = state;
        emit ToppedUp(channelId, msg.sender, amount, state.deposit());
        token.safeTransferFrom(msg.sender, address(this), amount);
    }

    /// @inheritdoc IPaymentChannels
    function redeem(address payee, Voucher calldata voucher) external override returns (uint256 paid) {
        bytes32 channelId;
        (channelId, paid) = _take(domainSeparator(), payee, voucher);
        if (paid == 0) {
            ChannelState state = _channels[channelId].state;
            if (voucher.cumulativeAmount > state.deposit()) {
                revert Overdrawn(channelId, voucher.cumulativeAmount, state.deposit());
            }
            revert Stale(channelId, voucher.cumulativeAmount, state.redeemed());
        }
        token.safeTransfer(payee, paid);
    }

    /// @inheritdoc IPaymentChannels
    function redeemBatch(address payee, Voucher[] calldata vouchers) external override returns (uint256 paid) {
        bytes32 separator = domainSeparator();
        for (uint256 i = 0; i < vouchers.length; ++i) {
            (, uint256 due) = _take(separator, payee, vouchers[i]);
            paid += due;
        }
        if (paid != 0) token.safeTransfer(payee, paid);
    }

    /// @inheritdoc IPaymentChannels
    function requestClose(address payee, address sessionKey, bytes32 salt) external override {
        bytes32 channelId = _channelId(msg.sender, payee, sessionKey, salt);
        uint64 closesAt = uint64(block.timestamp) + challengePeriod;
        Slot storage slot = _channels[channelId];
        slot.state = slot.state.closing(channelId, closesAt);
        emit CloseRequested(channelId, payee, closesAt);
    }

    /// @inheritdoc IPaymentChannels
    function close(Terms calldata terms) external override returns (uint256 refund) {
        bytes32 channelId = _channelId(terms.payer, terms.payee, terms.sessionKey, terms.salt);
        Slot storage slot = _channels[channelId];
        ChannelState state;
        (state, refund) = slot.state.closed(channelId, block.timestamp, msg.sender == terms.payee);
        slot.state = state;
        emit Closed(channelId, state.redeemed(), refund);
        if (refund != 0) token.safeTransfer(terms.payer, refund);
    }

    function _open(address payee, address sessionKey, bytes32 salt, uint256 amount) private {
        if (payee == address(0) || sessionKey == address(0)) revert ZeroAddress();
        bytes32 channelId = _channelId(msg.sender, payee, sessionKey, salt);
        Slot storage slot = _channels[channelId];
        slot.state = slot.state.opened(channelId, amount);
        emit Opened(channelId, msg.sender, payee, sessionKey, salt);
        token.safeTransferFrom(msg.sender, address(this), amount);
    }

    /// @dev Books what the voucher adds, once its signature holds; `due` is 0, and nothing is booked or checked, when it
    /// adds nothing.
    function _take(bytes32 separator, address payee, Voucher calldata voucher)
        private
        returns (bytes32 channelId, uint256 due)
    {
        address sessionKey = voucher.sessionKey;
        channelId = _channelId(voucher.payer, payee, sessionKey, voucher.salt);
        Slot storage slot = _channels[channelId];
        ChannelState state = slot.state;
        due = state.due(voucher.cumulativeAmount);
        if (due == 0) return (channelId, 0);
        bytes32 digest = Vouchers.digest(separator, channelId, voucher.cumulativeAmount, voucher.receiptsRoot);
        // Never zero: a channel with a deposit was opened with a session key.
        if (TypedData.signerOf(digest, voucher.r, voucher.vs) != sessionKey) revert BadSignature(channelId);
        slot.state = state.redeemedTo(voucher.cumulativeAmount);
        emit Redeemed(channelId, voucher.cumulativeAmount, voucher.receiptsRoot);
    }

    function _channelId(address payer, address payee, address sessionKey, bytes32 salt) private view returns (bytes32) {
        return Vouchers.channelId(address(this), payer, payee, sessionKey, salt);
    }
}
