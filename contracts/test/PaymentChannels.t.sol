// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IPaymentChannels} from "../src/interfaces/IPaymentChannels.sol";
import {ChannelMarket} from "./utils/ChannelMarket.sol";

/// @title How a channel is built, opened and topped up; redeeming and closing have files of their own
contract PaymentChannelsTest is ChannelMarket {
    // ---- opening and topping up ----------------------------------------------------------------------------------

    function test_openLocksTheDeposit() external {
        bytes32 id = idOf(1);
        vm.expectEmit(address(channels));
        emit IPaymentChannels.Opened(id, payer, PAYEE, vm.addr(SESSION), bytes32(uint256(1)));
        openChannel(1, DEPOSIT);
        IPaymentChannels.Channel memory held = channels.channel(id);
        vm.assertEq(held.deposit, DEPOSIT);
        vm.assertEq(held.redeemed, 0);
        vm.assertEq(held.closesAt, 0);
        vm.assertEq(octo.balanceOf(address(channels)), DEPOSIT);
        vm.assertEq(octo.balanceOf(payer), 1_000_000 ether - DEPOSIT);
    }

    function test_openTakesEachTermsOnce() external {
        openChannel(1, DEPOSIT);
        address sessionKey = vm.addr(SESSION);
        refuse(IPaymentChannels.AlreadyOpened.selector, 1);
        vm.prank(payer);
        channels.open(PAYEE, sessionKey, bytes32(uint256(1)), 1);
        closeAs(PAYEE, 1);
        refuse(IPaymentChannels.AlreadyOpened.selector, 1);
        vm.prank(payer);
        channels.open(PAYEE, sessionKey, bytes32(uint256(1)), 1);
    }

    function test_openRefusesNobody() external {
        address sessionKey = vm.addr(SESSION);
        vm.expectRevert(IPaymentChannels.ZeroAddress.selector);
        channels.open(address(0), sessionKey, 0, 1);
        vm.expectRevert(IPaymentChannels.ZeroAddress.selector);
        channels.open(PAYEE, address(0), 0, 1);
    }

    function test_openRefusesAmountsOutOfRange() external {
        address sessionKey = vm.addr(SESSION);
        uint256[3] memory amounts = [uint256(0), 2 ** 96, type(uint256).max];
        for (uint256 i = 0; i < amounts.length; i++) {
            vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.AmountOutOfRange.selector, amounts[i]));
            channels.open(PAYEE, sessionKey, 0, amounts[i]);
        }
    }

    function test_openNeedsTheTokens() external {
        address sessionKey = vm.addr(SESSION);
        vm.prank(payer);
        vm.expectRevert(
            abi.encodeWithSignature(
                "ERC20InsufficientBalance(address,uint256,uint256)", payer, 1_000_000 ether, 1_000_001 ether
            )
        );
        channels.open(PAYEE, sessionKey, 0, 1_000_001 ether);
    }

    function permit(uint256 amount, uint256 deadline) private view returns (uint8 v, bytes32 r, bytes32 s) {
        bytes32 typehash =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        bytes32 said = keccak256(abi.encode(typehash, payer, address(channels), amount, octo.nonces(payer), deadline));
        return vm.sign(payerKey, keccak256(abi.encodePacked("\x19\x01", octo.DOMAIN_SEPARATOR(), said)));
    }

    function openWithPermit(uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s) private {
        address sessionKey = vm.addr(SESSION);
        vm.prank(payer);
        channels.openWithPermit(PAYEE, sessionKey, bytes32(uint256(1)), amount, deadline, v, r, s);
    }

    function test_openWithPermitNeedsNoApproval() external {
        vm.prank(payer);
        octo.approve(address(channels), 0);
        (uint8 v, bytes32 r, bytes32 s) = permit(DEPOSIT, vm.getBlockTimestamp());
        openWithPermit(DEPOSIT, vm.getBlockTimestamp(), v, r, s);
        vm.assertEq(state(1).deposit, DEPOSIT);
    }

    function test_openWithPermitThatSomeoneElseUsedFirst() external {
        vm.prank(payer);
        octo.approve(address(channels), 0);
        (uint8 v, bytes32 r, bytes32 s) = permit(DEPOSIT, vm.getBlockTimestamp());
        octo.permit(payer, address(channels), DEPOSIT, vm.getBlockTimestamp(), v, r, s);
        openWithPermit(DEPOSIT, vm.getBlockTimestamp(), v, r, s);
        vm.assertEq(state(1).deposit, DEPOSIT);
    }

    function test_openWithExpiredPermitShowsAsMissingAllowance() external {
        vm.prank(payer);
        octo.approve(address(channels), 0);
        (uint8 v, bytes32 r, bytes32 s) = permit(DEPOSIT, vm.getBlockTimestamp() - 1);
        vm.expectRevert(
            abi.encodeWithSignature(
                "ERC20InsufficientAllowance(address,uint256,uint256)", address(channels), 0, DEPOSIT
            )
        );
        openWithPermit(DEPOSIT, vm.getBlockTimestamp() - 1, v, r, s);
    }

    function test_topUpAddsToTheDeposit() external {
        openChannel(1, DEPOSIT);
        redeemAs(PAYEE, voucher(1, 30 ether));
        vm.expectEmit(address(channels));
        emit IPaymentChannels.ToppedUp(idOf(1), payer, 5 ether, DEPOSIT + 5 ether);
        topUpAs(payer, 1, 5 ether);
        vm.assertEq(state(1).deposit, DEPOSIT + 5 ether);
        vm.assertEq(state(1).redeemed, 30 ether);
        redeemAs(PAYEE, voucher(1, DEPOSIT + 5 ether));
        vm.assertEq(octo.balanceOf(PAYEE), DEPOSIT + 5 ether);
    }

    function test_topUpByAnyoneIsTheirGiftToThePayer() external {
        octo.transfer(STRANGER, 5 ether);
        vm.prank(STRANGER);
        octo.approve(address(channels), 5 ether);
        openChannel(1, DEPOSIT);
        topUpAs(STRANGER, 1, 5 ether);
        closeAs(PAYEE, 1);
        vm.assertEq(octo.balanceOf(payer), 1_000_000 ether + 5 ether);
    }

    function test_topUpNeedsAnOpenChannel() external {
        bytes32 id = idOf(1);
        refuse(IPaymentChannels.NotOpen.selector, 1);
        channels.topUp(id, 1);
    }

    function test_topUpRefusesAmountsOutOfRange() external {
        openChannel(1, DEPOSIT);
        uint256[3] memory amounts = [uint256(0), 2 ** 96, type(uint256).max];
        bytes32 id = idOf(1);
        for (uint256 i = 0; i < amounts.length; i++) {
            vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.AmountOutOfRange.selector, amounts[i]));
            channels.topUp(id, amounts[i]);
        }
        vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.AmountOutOfRange.selector, DEPOSIT + type(uint96).max));
        channels.topUp(id, type(uint96).max);
    }

    // ---- construction and hashes ---------------------------------------------------------------------------------

    function test_challengePeriodHasBounds() external {
        uint64[2] memory periods = [uint64(0), 30 days + 1];
        for (uint256 i = 0; i < periods.length; i++) {
            vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.ChallengePeriodOutOfRange.selector, periods[i]));
            this.deployWith(periods[i]);
        }
        vm.assertEq(channels.challengePeriod(), PERIOD);
        vm.assertEq(address(channels.token()), address(octo));
    }

    function deployWith(uint64 challengePeriod) external {
        deployChannels(octo, "octo-test", challengePeriod);
    }

    function testFuzz_hashesByHandAreThoseOfAbiEncode(IPaymentChannels.Terms calldata t, uint256 amount, bytes32 root)
        external
        view
    {
        bytes32 id = keccak256(
            abi.encode(
                keccak256("Channel(address escrow,address payer,address payee,address sessionKey,bytes32 salt)"),
                address(channels),
                t
            )
        );
        vm.assertEq(channels.channelIdOf(t), id);
        bytes32 said = keccak256(
            abi.encode(
                keccak256("Voucher(bytes32 channelId,uint256 cumulativeAmount,bytes32 receiptsRoot)"), id, amount, root
            )
        );
        vm.assertEq(
            channels.voucherDigest(id, amount, root),
            keccak256(abi.encodePacked("\x19\x01", channels.domainSeparator(), said))
        );
    }
}
