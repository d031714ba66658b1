// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {INetworkDomain} from "./INetworkDomain.sol";

/// @title Unidirectional payment channels that are drawn on with cumulative vouchers
/// @notice A payer locks OCTO for one payee. A session key of the payer signs vouchers, each for the total owed so far.
/// Locked tokens only ever go to the payee, against a voucher, or back to the payer. There is no owner, no pause and no
/// upgrade. A channel's parties live in its id; its state is one storage slot.
///
///   never opened --open--> open --requestClose--> closing --close (anyone, after the challenge period)--> closed
///                           |  ^ topUp               |
///                           +--------- close (payee, at any time) ---------------------------------------> closed
///
/// Vouchers are redeemed while open and while closing. Closed is for ever: another channel takes another salt.
interface IPaymentChannels is INetworkDomain {
    /// @notice Who pays whom, who signs for the payer, and a salt that tells apart channels between the same three.
    struct Terms {
        address payer;
        address payee;
        address sessionKey;
        bytes32 salt;
    }

    /// @notice All that is stored of a channel: one slot.
    /// @param deposit what was ever put in; once closed, equal to `redeemed`
    /// @param redeemed what the payee has been paid
    /// @param closesAt 0 while open; from this time (seconds) anyone may close; the largest uint64 once closed
    struct Channel {
        uint96 deposit;
        uint96 redeemed;
        uint64 closesAt;
    }

    /// @notice A voucher with the rest of its channel's terms; the payee is named once for a whole batch.
    /// @param cumulativeAmount all that the channel owes so far, not what this voucher adds
    /// @param receiptsRoot Merkle root (RFC 6962, SHA-256) of the digests of the receipts that this pays for
    /// @param r first half of the session key's signature over the voucher
    /// @param vs its second half, compact: s with the parity of v in the top bit (EIP-2098)
    struct Voucher {
        address payer;
        address sessionKey;
        bytes32 salt;
        uint256 cumulativeAmount;
        bytes32 receiptsRoot;
        bytes32 r;
        bytes32 vs;
    }

    /// @notice The deposit is the value of the token's Transfer beside it, and `channel(channelId).deposit`.
    event Opened(
        bytes32 indexed channelId, address indexed payer, address indexed payee, address sessionKey, bytes32 salt
    );
    event ToppedUp(bytes32 indexed channelId, address indexed from, uint256 amount, uint256 deposit);
    event Redeemed(bytes32 indexed channelId, uint256 cumulativeAmount, bytes32 receiptsRoot);
    /// @notice The payee has until `closesAt` to redeem its last voucher. Anyone may redeem it for the payee.
    event CloseRequested(bytes32 indexed channelId, address indexed payee, uint64 closesAt);
    event Closed(bytes32 indexed channelId, uint256 redeemed, uint256 refund);

    /// @notice Thrown when a payee or a session key is the zero address.
    error ZeroAddress();
    /// @notice Thrown when nothing would be deposited, or more than fits the slot (2^96 - 1, seven times all OCTO).
    error AmountOutOfRange(uint256 amount);
    /// @notice Thrown at construction for a challenge period of 0 or above 30 days.
    error ChallengePeriodOutOfRange(uint64 challengePeriod);
    /// @notice Thrown when a channel with these terms was opened before, whatever became of it.
    error AlreadyOpened(bytes32 channelId);
    /// @notice Thrown when the channel was never opened or is closed. A channel without a deposit cannot be asked to
    /// close: else a payer could let the challenge period run out first and fund the channel afterwards.
    error NotOpen(bytes32 channelId);
    /// @notice Thrown when the channel is about to close: no deposit comes in, no second request moves the time.
    error Closing(bytes32 channelId, uint64 closesAt);
    /// @notice Thrown when anyone but the payee closes before the challenge period is over, or before it began (0).
    error TooEarly(bytes32 channelId, uint64 closesAt);
    /// @notice Thrown when the voucher adds nothing to what was redeemed.
    error Stale(bytes32 channelId, uint256 cumulativeAmount, uint256 redeemed);
    /// @notice Thrown when the voucher is above the deposit. It is all or nothing, so that no one can spend a voucher
    /// for part of its worth; a smaller one, or a top-up, helps.
    error Overdrawn(bytes32 channelId, uint256 cumulativeAmount, uint256 deposit);
    /// @notice Thrown when the session key did not sign this voucher for this channel, network and chain, or when the
    /// signature has a high s.
    error BadSignature(bytes32 channelId);

    /// @notice The token that all channels are in. Must be OCTO: fees on transfer and hooks are not provided for.
    function token() external view returns (IERC20);

    /// @notice Seconds between a request to close and the close.
    function challengePeriod() external view returns (uint64);

    /// @notice keccak256(abi.encode(CHANNEL_TYPEHASH, address(this), payer, payee, sessionKey, salt))
    function channelIdOf(Terms calldata terms) external view returns (bytes32);

    function channel(bytes32 channelId) external view returns (Channel memory);

    /// @notice What the session key signs.
    function voucherDigest(bytes32 channelId, uint256 cumulativeAmount, bytes32 receiptsRoot)
        external
        view
        returns (bytes32);

    /// @notice Locks `amount` of the caller's OCTO, which this contract must be allowed to take.
    /// @param sessionKey signs vouchers for the caller; the deposit is all that it can ever spend
    function open(address payee, address sessionKey, bytes32 salt, uint256 amount) external;

    /// @notice The same, with an EIP-2612 permit in place of an earlier approval. A permit that someone else has already
    /// submitted does no harm; one that is expired shows as the token's missing allowance.
    function openWithPermit(
        address payee,
        address sessionKey,
        bytes32 salt,
        uint256 amount,
        uint256 deadline,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external;

    /// @notice Adds `amount` of the caller's OCTO to an open channel. What is left goes back to the channel's payer.
    function topUp(bytes32 channelId, uint256 amount) external;

    /// @notice Pays `payee` what `voucher` adds to what was redeemed. Anyone may call this; only the payee is paid.
    function redeem(address payee, Voucher calldata voucher) external returns (uint256 paid);

    /// @notice Redeems many channels of one payee with one transfer. Vouchers that are stale or above the deposit are
    /// skipped, so that nobody spoils a batch by redeeming or closing one of its channels first. A bad signature
    /// reverts: nobody but the caller can put one in.
    function redeemBatch(address payee, Voucher[] calldata vouchers) external returns (uint256 paid);

    /// @notice The caller, as payer, starts the challenge period.
    function requestClose(address payee, address sessionKey, bytes32 salt) external;

    /// @notice Ends a channel and returns the rest to the payer. The payee may do so at any time, anyone else once the
    /// challenge period is over.
    function close(Terms calldata terms) external returns (uint256 refund);
}
