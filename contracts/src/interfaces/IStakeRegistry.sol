// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INetworkDomain} from "./INetworkDomain.sol";

/// @title Stakes of providers in OCTO-A, the keys that answer for them, and their loss
/// @notice A staker bonds OCTO-A for a tier, and binds the key that signs its receipts and the peer that serves. Whoever
/// shows two different receipts for one step of one task, both signed by that key, takes half of the stake away.
/// There is no owner, no pause and no upgrade.
interface IStakeRegistry is INetworkDomain {
    /// @notice Consumer 1,000, prosumer 5,000, enterprise 10,000 OCTO-A.
    enum Tier {
        None,
        Consumer,
        Prosumer,
        Enterprise
    }

    /// @notice One slot. Everything that is still here can be slashed, the part that unbonds too.
    /// @param bonded counts for the tier
    /// @param unbonding leaves at `releaseAt`
    /// @param releaseAt 0 while nothing unbonds, in seconds
    struct Stake {
        uint96 bonded;
        uint96 unbonding;
        uint48 releaseAt;
        Tier tier;
    }

    /// @param receiptSigner the secp256k1 key that signs receipts and quotes
    /// @param nonce how often the staker has bound a signer; the next binding signs this number
    /// @param peer ed25519 public key of the libp2p peer. The chain cannot check it: the Binding, which the peer signs
    /// too, does
    struct Identity {
        address receiptSigner;
        uint64 nonce;
        bytes32 peer;
    }

    /// @notice Who answers for a receipt signer.
    /// @param slashableUntil 0 while it is bound; after its rotation, the time (seconds) until which it still counts
    struct SignerRecord {
        address staker;
        uint48 slashableUntil;
    }

    /// @notice The part of a receipt that is signed (EIP-712). `body` is the sha-256 of its DAG-CBOR.
    struct Receipt {
        bytes32 body;
        bytes32 channel;
        bytes32 task;
        uint64 seq;
        bool isFinal;
        uint64 tokensIn;
        uint64 tokensOut;
        uint256 amount;
        bytes32 transcriptRoot;
        bytes32 quote;
    }

    /// @notice A compact signature: `vs` is s with the parity of v in the top bit (EIP-2098).
    struct Signature {
        bytes32 r;
        bytes32 vs;
    }

    event Staked(address indexed staker, Tier indexed tier, uint256 amount, uint256 bonded);
    event TierChanged(address indexed staker, Tier indexed from, Tier indexed to);
    event Bound(address indexed staker, address indexed receiptSigner, bytes32 indexed peer);
    /// @notice A signer was replaced; it can still be slashed until then.
    event SignerRotated(address indexed staker, address indexed receiptSigner, uint48 slashableUntil);
    event Unbonding(address indexed staker, uint256 amount, uint256 unbonding, uint48 releaseAt);
    event Withdrawn(address indexed staker, uint256 amount);
    /// @param fault keccak256(abi.encode(receiptSigner, channel, task, seq)); counts once
    /// @param amount what the staker lost: `reward` went to the reporter, the rest was burned
    event Slashed(
        address indexed staker, address indexed reporter, bytes32 indexed fault, uint256 amount, uint256 reward
    );

    /// @notice Thrown when nothing would be staked or taken out.
    error ZeroAmount();
    /// @notice Thrown when a stake would no longer fit its slot (2^96 - 1).
    error AmountTooLarge(uint256 amount);
    /// @notice Thrown when a tier is asked for that is `None`.
    error NoTier();
    /// @notice Thrown when the bonded stake is or would be below what the tier takes.
    error BelowTier(Tier tier, uint256 minimum, uint256 bonded);
    /// @notice Thrown when the caller has nothing staked to add to, or less bonded than it wants to take out.
    error NotStaked(uint256 bonded);
    /// @notice Thrown when the unbonding period is not over, or nothing unbonds (0).
    error TooEarly(uint48 releaseAt);
    /// @notice Thrown when a receipt signer is the zero address or a peer is empty.
    error ZeroIdentity();
    /// @notice Thrown when the key answers for another staker, or did so less than an unbonding period ago: else a
    /// provider that cheated could hide its key behind an empty stake.
    error SignerTaken(address receiptSigner, address staker);
    /// @notice Thrown when the receipt signer did not sign this binding, or the signature has a high s.
    error BadSignature();
    /// @notice Thrown when the two receipts are for different steps, or are the same receipt.
    error NotEquivocation();
    /// @notice Thrown when two keys signed, or a signature is not one.
    error DifferentSigners(address first, address second);
    /// @notice Thrown when the key was never bound, or was rotated out longer than the unbonding period ago.
    error NotSlashable(address receiptSigner);
    /// @notice Thrown when this fault was paid for already.
    error AlreadySlashed(bytes32 fault);
    /// @notice Thrown when nothing is left to take.
    error NothingToSlash(address staker);

    /// @notice OCTO-A.
    function token() external view returns (address);

    /// @notice 7 days, in seconds.
    function UNBONDING_PERIOD() external view returns (uint48);

    /// @notice The part of a stake that equivocation costs, in 1/10,000. A placeholder until the market shows what a
    /// cheat earns: 5,000.
    function SLASH_BPS() external view returns (uint256);

    /// @notice The part of a slash that its reporter gets, in 1/10,000; always below the slash, so that reporting
    /// oneself never pays. A placeholder: 1,000.
    function REPORTER_BPS() external view returns (uint256);

    /// @notice What a tier takes. Reverts for `None`.
    function minimumOf(Tier tier) external pure returns (uint256);

    /// @notice Whether `staker` answers for `tier` now: its own tier is that one or a higher one, its bonded stake is
    /// enough for its own tier, and a receipt signer is bound (a stake without one can never be slashed).
    function isActive(address staker, Tier tier) external view returns (bool);

    function stakeOf(address staker) external view returns (Stake memory);

    function identityOf(address staker) external view returns (Identity memory);

    function signerRecord(address receiptSigner) external view returns (SignerRecord memory);

    function isSlashed(bytes32 fault) external view returns (bool);

    /// @notice What a receipt signer signs: the EIP-712 digest of a receipt.
    function receiptDigest(Receipt calldata receipt) external view returns (bytes32);

    /// @notice What a receipt signer signs to be bound to `staker` and `peer` as its binding number `nonce`.
    function bindingDigest(address staker, address receiptSigner, bytes32 peer, uint256 nonce)
        external
        view
        returns (bytes32);

    /// @notice Bonds `amount` of the caller's OCTO-A, and takes `tier`, which the whole bonded stake must reach.
    /// What unbonds goes on unbonding.
    function stake(Tier tier, uint256 amount) external;

    /// @notice The same, with an EIP-2612 permit in place of an earlier approval.
    function stakeWithPermit(Tier tier, uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s) external;

    /// @notice Bonds `amount` more for the tier that the caller has, also to fill up what a slash took.
    function topUp(uint256 amount) external;

    /// @notice Changes the tier, up or down, to one that the bonded stake reaches.
    function changeTier(Tier tier) external;

    /// @notice Binds the key that signs the caller's receipts and the peer that serves for it. An earlier key stays
    /// slashable for an unbonding period.
    /// @param signature by `receiptSigner`, over `bindingDigest`
    function bind(address receiptSigner, bytes32 peer, Signature calldata signature) external;

    /// @notice Starts to unbond `amount`. All of it, or so much that the tier's minimum stays. If something unbonds
    /// already, the whole sum leaves at the new, later time: withdraw first what is due.
    function unstake(uint256 amount) external;

    /// @notice Pays out what has unbonded.
    function withdraw() external returns (uint256 amount);

    /// @notice Shows that a bound key signed two different receipts with one (channel, task, seq). Anyone may; the
    /// caller gets the reporter's part, the rest of the slash is burned.
    function slashEquivocation(
        Receipt calldata first,
        Signature calldata firstSignature,
        Receipt calldata second,
        Signature calldata secondSignature
    ) external returns (uint256 reward);
}
